/**
 * What vIOMMUs have in common whose guests' commands a unit takes nearly as they are: a list of commands of 128 bits, each
 * with the host's numbers put in, and the guest's numbers of its functions.
 */
import type { InvalidationOutcome, Requester, UserArray } from "../iommu/driver.ts";
import { LinuxError } from "../uapi/errno.ts";
import type { BitField } from "../uapi/layout.ts";

export interface GuestCommands {
  /** Type of the data, and its name for messages. */
  readonly type: number;
  readonly name: string;
  /** Of one command. */
  readonly layout: { readonly size: number; read(bytes: Uint8Array): { readonly cmd: readonly bigint[] } };
  /** Gives the unit a command, to be done by `sync`. Throws for one that is not a guest's to give. */
  push(command: bigint): void;
  sync(): void;
}

/** Carries out a guest's commands up to the first that is refused. All are read before the first is given to the unit. */
export const carryOut = (requests: UserArray, commands: GuestCommands): InvalidationOutcome => {
  let all: bigint[];
  try {
    all = readAll(requests, commands);
  } catch (error) {
    return { done: 0, error };
  }
  let done = 0;
  try {
    for (const command of all) {
      commands.push(command);
      done += 1;
    }
  } catch (error) {
    commands.sync();
    return { done, error };
  }
  commands.sync();
  return { done };
};

const readAll = (requests: UserArray, { type, name, layout }: GuestCommands): bigint[] => {
  if (requests.type !== type)
    throw new LinuxError("EINVAL", `data_type ${requests.type}: ${type} (${name}) is taken`);
  if (requests.count === 0) throw new LinuxError("EINVAL", "entry_num is 0: there is no command");
  return Array.from({ length: requests.count }, (_, index) => {
    const [low, high] = layout.read(requests.read(index, layout.size)).cmd;
    return low! | (high! << 64n);
  });
};

/** A command with another value in a field. */
export const replaced = (command: bigint, field: BitField, value: number): bigint =>
  (command & ~field.put((1n << BigInt(field.width)) - 1n)) | field.put(BigInt(value));

/** Functions of a guest by the numbers that it has for them. */
export class GuestDevices {
  readonly #devices = new Map<bigint, Requester>();

  add(device: Requester, virtualId: bigint): void {
    this.#devices.set(virtualId, device);
  }
  remove(virtualId: bigint): void {
    this.#devices.delete(virtualId);
  }
  find(virtualId: bigint): Requester | undefined {
    return this.#devices.get(virtualId);
  }
  idOf(device: Requester): bigint | undefined {
    for (const [id, known] of this.#devices) if (known === device) return id;
    return undefined;
  }
}
