/**
 * The one loop: waits for descriptors with epoll on the main thread, tells their watchers, and runs deferred work in
 * between. Before it waits it may look for a moment for requests that need no descriptor. Node's own event loop keeps
 * turning: its backend descriptors are watched too, so that a child that ended or a timer interrupts the waiting, and
 * every turn is short.
 */
import { closeSync, readdirSync, readlinkSync } from "node:fs";
import type { WorkQueue } from "../base/scheduler.ts";
import {
  Epoll,
  epollAdd,
  epollCreate,
  epollDelete,
  epollPause,
  epollWait,
  MAX_EVENTS,
  readyEvents,
  readyFd,
  readyTag,
} from "./syscalls.ts";

/** Longest wait: bounds the delay of Node's timers. */
const SLICE_MILLISECONDS = 10;
/** Node gets a turn at least this often when clients keep us busy. */
const TURN_MILLISECONDS = 4;
/** How long we sleep for programs to run before work that waits for that, unless they ask something sooner. */
const PAUSE_MICROSECONDS = 20;
/** Between two looks at the descriptors when requests are looked for elsewhere. */
const LOOK_MICROSECONDS = 20;
/** Full batches of descriptors in a row that a request found elsewhere waits for. */
const MOST_FULL_BATCHES = 16;
/** Pieces of deferred work between two looks at the descriptors. */
const WORK_BUDGET = 64;

export type Ready = (events: number) => void;

/** Requests that come without a word to the kernel (lookout.ts). */
export interface Requests {
  /** Looks for them that long; false: there are none, and the loop hears of the next. */
  look(microseconds: number): boolean;
  /** Serves those that the last `look` found. */
  serve(): void;
}

interface Watch {
  readonly tag: number;
  /** Waits for nothing but the other end going away. */
  readonly onlyHangUp: boolean;
  readonly ready: Ready;
}

export class Loop {
  readonly #epoll = epollCreate();
  readonly #work: WorkQueue;
  /** By descriptor. The tag tells a number that was closed and opened again within one batch. */
  readonly #watches: (Watch | undefined)[] = [];
  readonly #onError: (error: unknown) => void;
  readonly #lookout: Requests | undefined;
  #fullBatches = 0;
  #tags = 0;
  #running = false;
  #closed = false;

  /** `onError` is told what deferred work or a watcher threw; the loop goes on. */
  constructor(work: WorkQueue, onError: (error: unknown) => void, lookout?: Requests) {
    this.#work = work;
    this.#onError = onError;
    this.#lookout = lookout;
    this.#watchNode();
  }

  watch(fd: number, events: number, ready: Ready): void {
    this.#tags = (this.#tags + 1) >>> 0;
    const tag = this.#tags;
    this.#watches[fd] = { tag, onlyHangUp: events === 0, ready };
    if (epollAdd(this.#epoll, fd, events, tag) < 0) this.#watches[fd] = undefined;
  }

  /** Before the descriptor is closed. */
  unwatch(fd: number): void {
    if (this.#watches[fd] === undefined) return;
    this.#watches[fd] = undefined;
    if (!this.#closed) epollDelete(this.#epoll, fd);
  }

  start(): void {
    if (this.#running || this.#closed) return;
    this.#running = true;
    this.#turn();
  }

  close(): void {
    this.#running = false;
    if (this.#closed) return;
    this.#closed = true;
    closeSync(this.#epoll);
  }

  /** One short stay in our loop, then Node's, then again. */
  #turn(): void {
    setImmediate(() => {
      if (!this.#running) return;
      try {
        this.#stay();
      } finally {
        this.#turn();
      }
    });
  }

  #stay(): void {
    const end = performance.now() + TURN_MILLISECONDS;
    this.#nodeIsReady = false;
    while (this.#running && !this.#nodeIsReady) {
      const looks = this.#look();
      if (this.#work.waitsForPrograms) {
        if (!looks) epollPause(this.#epoll, PAUSE_MICROSECONDS);
        this.#work.programsRan();
      }
      const wait = looks || this.#work.pending > 0 ? 0 : SLICE_MILLISECONDS;
      const count = epollWait(this.#epoll, wait);
      if (count < 0) return; // a signal arrived: it is Node's to see
      // What a client closed before it asked must be closed when its request is served.
      for (let i = 0; i < count && this.#running; i += 1) this.#deliver(i, true);
      for (let i = 0; i < count && this.#running; i += 1) this.#deliver(i, false);
      this.#serveFound(count);
      this.#runWork();
      if (count === 0 && this.#work.pending === 0 && !looks) return;
      if (performance.now() >= end) return;
    }
  }

  /** Whether somebody may post a request without a word to the kernel, or has. */
  #look(): boolean {
    const { pending, waitsForPrograms } = this.#work;
    const moment = waitsForPrograms ? PAUSE_MICROSECONDS : pending > 0 ? 0 : LOOK_MICROSECONDS;
    return this.#lookout?.look(moment) === true;
  }

  /** What was found before the kernel told of `count` descriptors; what was closed before may lie behind a full batch. */
  #serveFound(count: number): void {
    this.#fullBatches = count === MAX_EVENTS ? this.#fullBatches + 1 : 0;
    if (this.#fullBatches % MOST_FULL_BATCHES !== 0) return;
    try {
      this.#lookout?.serve();
    } catch (error) {
      this.#onError(error);
    }
  }

  #deliver(i: number, onlyHangUp: boolean): void {
    const watch = this.#watches[readyFd(i)];
    if (watch === undefined || watch.tag !== readyTag(i) || watch.onlyHangUp !== onlyHangUp) return;
    try {
      watch.ready(readyEvents(i));
    } catch (error) {
      this.#onError(error);
    }
  }

  #runWork(): void {
    if (this.#work.pending === 0) return;
    try {
      this.#work.runPrompt(WORK_BUDGET);
    } catch (error) {
      this.#onError(error);
    }
  }

  #nodeIsReady = false;

  /** libuv waits in epoll descriptors of its own; an edge there means that Node has something to do. */
  #watchNode(): void {
    for (const name of readdirSync("/proc/self/fd")) {
      const fd = Number(name);
      let target: string;
      try {
        target = readlinkSync(`/proc/self/fd/${name}`);
      } catch {
        continue;
      }
      if (target !== "anon_inode:[eventpoll]") continue;
      this.watch(fd, Epoll.in | Epoll.edge, () => {
        this.#nodeIsReady = true;
      });
    }
  }
}
