import { spawn } from "node:child_process";
import { closeSync } from "node:fs";
import { stat } from "node:fs/promises";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { WorkQueue } from "../base/scheduler.ts";
import { Loop } from "./loop.ts";
import { Epoll, namedPair, receive, sendBytes } from "./syscalls.ts";

let work: WorkQueue;
let errors: unknown[];
let loop: Loop;
beforeEach(() => {
  work = new WorkQueue();
  errors = [];
  loop = new Loop(work, (error) => errors.push(error));
  loop.start();
});
afterEach(() => {
  loop.close();
});

let pairs = 0;
const pair = () => {
  const ends = namedPair(`\0softiommu-loop-test-${process.pid}-${pairs++}`);
  if (typeof ends === "number") throw new Error(`socketpair: ${ends}`);
  return ends;
};
const later = (milliseconds: number) => new Promise((resolve) => setTimeout(resolve, milliseconds));

describe("the loop", () => {
  it("tells watchers what is ready, and nothing after they stopped watching", async () => {
    const { ours, theirs } = pair();
    const got: number[] = [];
    loop.watch(ours, Epoll.in, () => got.push(receive(ours)));
    sendBytes(theirs, new Uint8Array(5));
    await later(20);
    expect(got).toEqual([5]);
    loop.unwatch(ours);
    sendBytes(theirs, new Uint8Array(6));
    await later(20);
    expect(got).toEqual([5]);
    closeSync(ours);
    closeSync(theirs);
  });

  it("runs deferred work in order, what it defers included, and survives what it throws", async () => {
    const ran: number[] = [];
    work.defer(() => {
      ran.push(1);
      work.defer(() => ran.push(4));
    });
    work.defer(() => {
      ran.push(2);
      throw new Error("on purpose");
    });
    work.defer(() => ran.push(3));
    await later(30);
    expect(ran).toEqual([1, 2, 3, 4]);
    expect(errors).toEqual([new Error("on purpose")]);
  });

  it("hears what programs ask next before it does work that waits for them", async () => {
    const { ours, theirs } = pair();
    const order: string[] = [];
    loop.watch(ours, Epoll.in, () => {
      receive(ours);
      order.push("asked");
      if (order.length > 1) return;
      work.deferPastPrograms(() => order.push("past programs"));
      work.defer(() => order.push("soon"));
      sendBytes(theirs, new Uint8Array(1));
    });
    sendBytes(theirs, new Uint8Array(1));
    await later(30);
    expect(order).toEqual(["asked", "soon", "asked", "past programs"]);
    loop.unwatch(ours);
    closeSync(ours);
    closeSync(theirs);
  });

  it("survives a watcher that throws", async () => {
    const { ours, theirs } = pair();
    loop.watch(ours, Epoll.in, () => {
      receive(ours);
      throw new Error("watcher");
    });
    sendBytes(theirs, new Uint8Array(1));
    await later(20);
    expect(errors).toEqual([new Error("watcher")]);
    closeSync(ours);
    closeSync(theirs);
  });

  it("lets Node's timers and children turn while work never ends", async () => {
    let on = true;
    const endless = (): void => {
      if (on) work.defer(endless);
    };
    work.defer(endless);
    const { ours, theirs } = pair();
    let pings = 0;
    loop.watch(ours, Epoll.in, () => {
      receive(ours);
      pings += 1;
    });
    const start = performance.now();
    const code = await new Promise((resolve) => spawn("/bin/true").on("close", resolve));
    await later(10);
    sendBytes(theirs, new Uint8Array(1));
    await later(30);
    on = false;
    expect(code).toBe(0);
    expect(pings).toBe(1);
    expect(performance.now() - start).toBeLessThan(2000);
    loop.unwatch(ours);
    closeSync(ours);
    closeSync(theirs);
  });

  it("wakes for Node at once when it is idle", async () => {
    const start = performance.now();
    for (let i = 0; i < 200; i += 1) await stat("/");
    // Waiting out a slice for each answer of Node's thread pool would take two seconds.
    expect(performance.now() - start).toBeLessThan(1000);
  });
});
