/** Memory of one process that devices reach by the call of another, and every kind of memory there is. */
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { Host } from "../src/attach/host.ts";
import { leftOver, mockHost, runOn } from "./support/host.ts";
import { client } from "./support/run.ts";

describe("memory that a process has mapped for devices", () => {
  const bugs: string[] = [];
  let host: Host;
  beforeAll(() => {
    host = mockHost((where, reason) => bugs.push(`${where}: ${reason}`));
  });
  afterAll(() => host.stop());

  it("is its own, whoever's call pins it, and stays when it is unmapped or its owner is gone", async () => {
    const { status, stdout, stderr } = await runOn(host, client("shared-file"));
    expect(stderr).toBe("");
    expect(stdout.trim().split("\n")).toEqual([
      "pinned by the child: abcd",
      "after the parent's store: Abcd",
      "after its munmap: Abcd",
      "pinned by the parent: klmn",
      "after its owner's end: klmn",
      "seen by the receiver: stuv",
      "mapped later: wyz{",
      "private: mapped ad, beyond ENOENT",
      "private, read-only: mapped ad, beyond ENOENT",
      "shared: mapped ad, beyond ENOENT",
      "memfd: mapped ad, beyond ENOENT",
      "copy of a memfd: mapped ad, beyond ENOENT",
      "memfd, read-only: mapped ad, beyond ENOENT",
      "huge, private: mapped ad, beyond ENOENT",
      "huge, shared: mapped ad, beyond ENOENT",
    ]);
    expect(status).toBe(0);
    expect(await leftOver(host)).toEqual({});
    expect(bugs).toEqual([]);
  });

  it("is ready for what Linux says, and a descriptor that has no number leaves no object", async () => {
    const { status, stdout, stderr } = await runOn(host, client("ready"));
    expect(stderr).toBe("");
    expect(stdout.trim().split("\n")).toEqual([
      "iommufd: poll 0x145, epoll EPERM",
      "access: poll 0x145, epoll EPERM",
      "fault queue: poll 0x4, epoll 0",
      "event queue: poll 0x0, epoll 0",
      "without a descriptor: EMFILE, id 0, next id the same",
    ]);
    expect(status).toBe(0);
    expect(await leftOver(host)).toEqual({});
    expect(bugs).toEqual([]);
  });
});
