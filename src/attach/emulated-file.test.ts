import { closeSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { AttachedCall, type CallHost } from "./attached-call.ts";
import { FileTable } from "./emulated-file.ts";
import type { AttachedProcess } from "./process.ts";
import { MAX_FDS } from "./protocol.ts";
import { drainSocket, readyNow, receive, received, socketCookie } from "./syscalls.ts";
import { FakeNode } from "./testing/fake-node.ts";
import { PlainMemory } from "./testing/harness.ts";

let tables = 0;
const table = (most = 100): FileTable => new FileTable(`softiommu-test-${process.pid}-${tables++}/`, most);
const node = new FakeNode("/dev/x");
const POLLIN = 1;
const POLLOUT = 4;
const ready = (fd: number): number => readyNow(fd, POLLIN | POLLOUT);

describe("a file of clients", () => {
  it("is known by the cookie of the client's end, and closes once", () => {
    const files = table();
    const file = node.make();
    const emulated = files.add(file);
    expect(emulated.cookie).toBe(socketCookie(emulated.theirs));
    expect(files.get(emulated.cookie)).toBe(emulated);
    files.remove(emulated);
    emulated.close();
    expect(file.closed).toBe(1);
    expect(files.get(emulated.cookie)).toBeUndefined();
    expect(files.size).toBe(0);
  });

  it("has one doorbell due while there is something to read, and a new one after that", () => {
    const files = table();
    const file = node.make();
    const emulated = files.add(file);
    expect(emulated.quiet()).toBeUndefined(); // never rung
    file.queue.push(new Uint8Array(1), new Uint8Array(1));
    file.onReady?.();
    file.onReady?.();
    expect(receive(emulated.theirs)).toBe(4);
    expect(receive(emulated.theirs)).toBe(-11);
    expect(emulated.quiet()).toBeUndefined(); // still something there
    file.queue.length = 0;
    expect(emulated.quiet()).toBe(1);
    file.queue.push(new Uint8Array(1));
    file.onReady?.();
    expect(receive(emulated.theirs)).toBe(4);
    expect(received.view.getUint32(0, true)).toBe(2);
    emulated.ringAgain(); // that message was taken by mistake
    expect(receive(emulated.theirs)).toBe(4);
    files.remove(emulated);
  });

  it("loses its doorbell when there is nothing to read any more, and gets another", () => {
    const files = table();
    const file = node.make();
    const emulated = files.add(file);
    let found = false;
    emulated.retract = () => found && drainSocket(emulated.theirs) === 1;
    file.queue.push(new Uint8Array(1));
    file.onReady?.();
    file.queue.length = 0;
    file.onReady?.(); // nobody has the other end at the moment
    expect(ready(emulated.theirs)).toBe(POLLIN);
    found = true;
    file.onReady?.();
    expect(ready(emulated.theirs)).toBe(0);
    file.queue.push(new Uint8Array(1));
    file.onReady?.();
    expect(ready(emulated.theirs)).toBe(POLLIN);
    files.remove(emulated);
  });

  it("is ready for everything when it has no poll operation, and stays so", () => {
    const files = table();
    const emulated = files.add({ kind: "x", name: "x", close() {} });
    expect(ready(emulated.theirs)).toBe(POLLIN | POLLOUT);
    expect(emulated.quiet()).toBeUndefined();
    files.remove(emulated);
  });

  it("can be written where its poll says so, whatever is to be read", () => {
    const files = table();
    const emulated = files.add({ kind: "x", name: "x", poll: () => POLLOUT, close() {} });
    expect(ready(emulated.theirs)).toBe(POLLOUT);
    files.remove(emulated);
  });

  it("is refused with ENFILE, and closed, when clients hold too many", () => {
    const files = table(1);
    const first = files.add(node.make());
    const second = node.make();
    expect(() => files.add(second)).toThrow(expect.objectContaining({ code: "ENFILE" }));
    expect(second.closed).toBe(1);
    files.remove(first);
  });
});

describe("a call's descriptors are bounded", () => {
  const host: CallHost = {
    files: table(),
    adoptFile() {},
    discardFile(emulated) {
      this.files.remove(emulated);
    },
    watchEventfd() {},
    unwatchEventfd() {},
    backing(fd) {
      closeSync(fd);
      throw new Error("not used");
    },
    eventfds: 3,
    mostEventfds: 3,
  };
  const task = {
    pid: 1,
    tid: 1,
    uid: 0,
    name: "x",
    memory: new PlainMemory(1),
    capable: () => false,
    memlockLimit: () => 0,
    mlockedPages: () => 0,
  };
  const roomy = { hasRoomFor: () => true } as Partial<AttachedProcess> as AttachedProcess;
  const call = (process = roomy) => new AttachedCall(host, process, task, { finish() {}, fail() {} });

  it("new files to those for which the caller has numbers", () => {
    const full = { hasRoomFor: (count: number) => count <= 1 } as Partial<AttachedProcess> as AttachedProcess;
    const making = call(full);
    making.install(node.make());
    const extra = node.make();
    expect(() => making.install(extra)).toThrow(expect.objectContaining({ code: "EMFILE" }));
    expect(extra.closed).toBe(1);
    for (const { emulated } of making.installed) host.discardFile(emulated);
    expect(host.files.size).toBe(0);
  });

  it("new files to those that one message can carry", () => {
    const making = call();
    for (let i = 0; i < MAX_FDS; i += 1) making.install(node.make());
    const extra = node.make();
    expect(() => making.install(extra)).toThrow(expect.objectContaining({ code: "EMFILE" }));
    expect(extra.closed).toBe(1);
    for (const { emulated } of making.installed) host.discardFile(emulated);
    expect(host.files.size).toBe(0);
  });

  it("eventfds to the daemon's share", () => {
    expect(() => call().eventfd(3)).toThrow(expect.objectContaining({ code: "ENFILE" }));
  });
});
