/** What the stories with PASIDs tell alike: a process of a guest and the device reach the same bytes at the same address. */
import type { GuestProcess } from "../../guest/process.ts";
import type { GuestStage } from "./guest-stage.ts";
import type { Teller } from "./story.ts";

export interface Member {
  readonly name: string;
  readonly process: GuestProcess;
  readonly pasid: number;
}

/** The device reads "memory of NAME", which the process has at the address, and writes an answer 256 bytes after it. */
export const shareAddresses = (
  scene: GuestStage,
  teller: Teller,
  { name, process, pasid }: Member,
  address: number,
): void => {
  const text = `memory of ${name}`;
  teller.claim(
    `with PASID ${pasid} the device reads the memory of ${name} at ${name}'s own address`,
    scene.fetch(address, text.length, pasid) === text,
  );
  const answer = `written for ${name}`;
  const stored = scene.store(address + 256, answer, pasid);
  teller.claim(
    `what it writes there, ${name} reads through its own table`,
    stored === "done" && process.read(address + 256, answer.length) === answer,
  );
};
