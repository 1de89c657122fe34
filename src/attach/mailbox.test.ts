import { afterEach, beforeAll, beforeEach, describe, expect, it } from "vitest";
import * as libc from "../base/libc.ts";
import { Mailbox } from "./mailbox.ts";
import { MailboxPage, ReplyHeader, RequestHeader } from "./protocol.ts";
import { outgoing, received } from "./syscalls.ts";
import { BUILD_MILLISECONDS, buildClient, buildLibrary, ended, Harness, until } from "./testing/harness.ts";

describe("the page of a mailbox", () => {
  let mailbox: Mailbox;
  let address: number;
  let view: DataView;
  beforeEach(() => {
    mailbox = new Mailbox();
    const { read, write } = libc.Prot;
    const [file] = mailbox.descriptors;
    address = libc.must("mmap", libc.mmap(0, MailboxPage.size, read | write, libc.MapFlag.shared, file!, 0));
    view = new DataView(libc.viewOf(address, MailboxPage.size));
  });
  afterEach(() => {
    mailbox.close();
    libc.munmap(address, MailboxPage.size);
  });

  const post = (seq: number, length: number, said = seq): void => {
    view.setUint32(MailboxPage.body + RequestHeader.seq, said, true);
    view.setUint32(MailboxPage.length, length, true);
    view.setUint32(MailboxPage.request, seq, true);
  };

  it("has each request once", () => {
    expect(mailbox.take()).toBe(-1);
    post(1, 40);
    view.setUint8(MailboxPage.body + 39, 0x5a);
    expect([mailbox.take(), received.bytes[39], mailbox.take()]).toEqual([40, 0x5a, -1]);
    expect(view.getUint32(MailboxPage.taken, true)).toBe(1);
    post(2, 32);
    expect([mailbox.take(), mailbox.holds(2), mailbox.holds(1)]).toEqual([32, true, false]);
  });

  it("what was taken stays as it was, whatever the client writes afterwards", () => {
    view.setUint8(MailboxPage.body + 33, 1);
    post(1, 40);
    mailbox.take();
    view.setUint8(MailboxPage.body + 33, 2);
    expect(received.bytes[33]).toBe(1);
  });

  it("lengths that are no message are none: too short, longer than the page, of another request", () => {
    post(1, 31);
    expect(mailbox.take()).toBe(0);
    post(2, 0xffff_ffff);
    expect(mailbox.take()).toBe(MailboxPage.room);
    post(3, 64, 4);
    expect(mailbox.take()).toBe(0);
  });

  it("an answer is announced by its request's number; one that went elsewhere names none", () => {
    post(7, 32);
    mailbox.take();
    outgoing.view.setUint32(ReplyHeader.seq, 7, true);
    expect(mailbox.answer(ReplyHeader.size)).toBe(true);
    expect(view.getUint32(MailboxPage.reply, true)).toBe(7);
    expect(view.getUint32(MailboxPage.answer + ReplyHeader.seq, true)).toBe(7);
    expect(mailbox.answer(MailboxPage.room + 1)).toBe(false);
    post(8, 32);
    mailbox.take();
    mailbox.answerElsewhere();
    expect(view.getUint32(MailboxPage.reply, true)).toBe(8);
    expect(view.getUint32(MailboxPage.answer + ReplyHeader.seq, true)).toBe(0);
  });

  it("says whether a request waits, and whether the client needs to ring", () => {
    expect([mailbox.posted, view.getUint32(MailboxPage.looking, true)]).toEqual([false, 0]);
    post(1, 32);
    mailbox.announce(true);
    expect([mailbox.posted, view.getUint32(MailboxPage.looking, true)]).toEqual([true, 1]);
    mailbox.take();
    mailbox.announce(false);
    expect([mailbox.posted, view.getUint32(MailboxPage.looking, true)]).toEqual([false, 0]);
  });

  it("a client that looks for its answer is told from one that sleeps, or has none yet", () => {
    for (const sleeps of [0, 1]) {
      post(1 + sleeps, 32);
      mailbox.take();
      expect(mailbox.clientLooks).toBe(false);
      view.setUint32(MailboxPage.sleeps, sleeps, true);
      mailbox.answer(ReplyHeader.size);
      expect(mailbox.clientLooks).toBe(sleeps === 0);
    }
  });

  it("cannot be made shorter by who gets it", () => {
    expect(libc.ftruncate(mailbox.descriptors[0]!, 0)).toBe(-1);
  });
});

describe("calls through a mailbox", () => {
  let harness: Harness;
  beforeAll(() => {
    buildLibrary();
  }, BUILD_MILLISECONDS);
  beforeEach(() => {
    harness = new Harness().start();
  });
  afterEach(() => {
    harness.stop();
  });

  it("are as those over the connection: waits, signals, new files, forks, bad addresses, lost descriptors", async () => {
    expect(await harness.client("mailbox")).toBe("done\n");
    await harness.quiet();
  });

  it("wait for nothing: not one of many threads' calls is lost, whatever the pauses between them", async () => {
    expect(await harness.client("pace", "threads")).toBe("done\n");
    await harness.quiet();
  });

  it("and answers are heard when the two sides look and sleep by turns", async () => {
    expect(await harness.client("mailbox-race")).toBe("done\n");
  });

  it("come after the files that were closed before them", async () => {
    expect(await harness.client("pace", "closes")).toBe("done\n");
    await harness.quiet();
  });

  it("a daemon that goes while one waits is noticed", async () => {
    const end = ended(harness.spawn(buildClient("mailbox"), ["orphan"]));
    await until(() => harness.server.live.suspended === 1);
    harness.server.stop();
    expect(await end).toMatchObject({ code: 0, stdout: "done\n" });
  });

  it("are made over the connection when there are no more mailboxes", async () => {
    const few = new Harness({ mostMailboxes: 0 }).start();
    expect(await few.client("doorbell")).toBe("done\n");
    expect(await few.client("threads")).toBe("done\n");
    await few.quiet();
    few.stop();
  });
});
