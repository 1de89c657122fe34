/** What tests of drivers do to a machine's memory: make it run out, and have a unit's messages arrive in it. */
import type { SendMessage } from "../hardware/unit.ts";
import type { HostMemory } from "../memory/host-memory.ts";

/** From now on `allocate` fails when what is told last was taken; at first it never does. */
export const rationed = (memory: HostMemory): ((frames: number) => void) => {
  let left = Number.POSITIVE_INFINITY;
  const allocate = memory.allocate.bind(memory);
  memory.allocate = (count) => {
    if (left < count) return -1;
    left -= count;
    return allocate(count);
  };
  return (frames) => {
    left = frames;
  };
};

/** A message is a write of its data to its address. */
export const messagesInto =
  (memory: HostMemory): SendMessage =>
  (address, data) => {
    memory.writeBytes(Number(address), new Uint8Array(Uint32Array.of(data).buffer));
  };
