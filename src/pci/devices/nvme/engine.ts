/**
 * The controller's engine (§4.1, §7.2): fetches commands from the submission queues in turn (round robin, §4.13),
 * moves their data, posts their completions. It works in slices of bounded size, between which everybody else has a
 * turn; a command with much data goes on in the next one.
 *
 * Any DMA may stall. Then the command (or the queue that was fetched from or posted to) is parked with what is left to
 * do, the others go on, and the same access is made again when the unit says so. What a command *means* is decided by
 * `execute`; here it is only carried out.
 */
import { TranslateStatus } from "../../../hardware/unit.ts";
import type { DmaPort } from "../../function.ts";
import { Walk } from "./prp.ts";
import { Command, CommandState, type CompletionQueue, type SubmissionQueue, Transfer } from "./queue.ts";
import { CQE_BYTES, StatusCode, statusBits } from "./spec.ts";

/** Commands fetched and bytes moved in a slice. */
const SLICE_COMMANDS = 64;
const SLICE_BYTES = 2 ** 20;
/** Bytes moved at once. */
const CHUNK = 128 * 1024;
/**
 * A command that moves more is not carried out before the host's processor had time to go on: no device answers it
 * before the doorbell's store is over, and drivers that look for completions as they submit (QEMU's does) would else
 * never let go, and have more memory mapped at once than they reckon with.
 */
const PROMPT_BYTES = 64 * 1024;
/** Commands of one submission queue that may be under way; a host whose pages all stall cannot make more objects. */
const OUTSTANDING = 128;
/** Offset of the byte of a completion entry that holds the phase. */
const PHASE_BYTE = 14;

export interface EngineContext {
  readonly dma: DmaPort;
  readonly defer: (work: () => void) => void;
  /** The same, after the host's processor had time to go on. */
  readonly deferPastPrograms: (work: () => void) => void;
  /** Decides what a fetched command does: its transfer, or its status, or that it is held. */
  readonly execute: (command: Command) => void;
  /** A command is about to complete; its status stands. */
  readonly finished: (command: Command) => void;
  /** There are new entries in the queue. */
  readonly posted: (cq: CompletionQueue) => void;
  /** A queue cannot be reached: nothing can be told to the host any more but by CSTS. */
  readonly fatal: (reason: string) => void;
}

const Progress = { done: 0, more: 1, stalled: 2 } as const;
type Progress = (typeof Progress)[keyof typeof Progress];

export class Engine {
  readonly sqs: (SubmissionQueue | undefined)[] = [];
  readonly cqs: (CompletionQueue | undefined)[] = [];
  pageBytes = 4096;
  readonly #context: EngineContext;
  #running = false;
  #scheduled = false;
  #busy = false;
  /** Submission queues in their turn. */
  #order: SubmissionQueue[] = [];
  #turn = 0;
  #ready: Command[] = [];
  /** Queues whose waiting completions may be posted now. */
  #postable: CompletionQueue[] = [];
  /** Queues with entries the host is to be told of at the end of the slice: one interrupt for all of them. */
  #told: CompletionQueue[] = [];
  /** Every command object there is; the free ones among them in `#free`. */
  #commands: Command[] = [];
  #free: Command[] = [];
  #bytesLeft = 0;
  readonly #scratch = new Uint8Array(CHUNK);
  #view = this.#scratch;
  /** What the host's data is compared with. */
  readonly #stored = new Uint8Array(CHUNK);
  readonly #entryWords = new Uint32Array(CQE_BYTES / 4);
  readonly #entry = new Uint8Array(this.#entryWords.buffer);
  readonly #phaseByte = this.#entry.subarray(PHASE_BYTE, PHASE_BYTE + 1);

  constructor(context: EngineContext) {
    this.#context = context;
  }

  /** May the engine make DMA (ready, no fatal status, bus master)? Starting it looks at the queues. */
  set running(running: boolean) {
    this.#running = running;
    if (running) this.kick();
  }

  /** A new pair of queue numbers is served. */
  addCompletionQueue(cq: CompletionQueue): void {
    this.cqs[cq.id] = cq;
  }

  addSubmissionQueue(sq: SubmissionQueue): void {
    this.sqs[sq.id] = sq;
    this.#order.push(sq);
    sq.cq.users += 1;
  }

  /** §5.6: commands under way are aborted and completed so. */
  deleteSubmissionQueue(sq: SubmissionQueue): void {
    sq.gone = true;
    sq.cq.users -= 1;
    this.sqs[sq.id] = undefined;
    this.#order = this.#order.filter((one) => one !== sq);
    this.#turn = 0;
    for (const command of this.#commands) if (command.sq === sq) this.abort(command, StatusCode.SQ_DELETION);
  }

  deleteCompletionQueue(cq: CompletionQueue): void {
    cq.gone = true;
    this.cqs[cq.id] = undefined;
    for (const command of cq.waiting.splice(0)) this.#release(command);
  }

  /** The command of a queue with this identifier that is under way. */
  find(sqid: number, cid: number): Command | undefined {
    return this.#commands.find(
      (one) => one.sq?.id === sqid && !one.sq.gone && one.cid === cid && isUnderWay(one),
    );
  }

  /** Ends a command that is under way with a status; another is left alone. */
  abort(command: Command, status: number): void {
    if (!isUnderWay(command)) return;
    this.complete(command, status);
  }

  /** Everything is gone: queues, commands, what was parked (the caller drops that at the port). */
  clear(): void {
    for (const queue of [...this.#order, ...this.cqs]) if (queue) queue.gone = true;
    this.#running = false;
    this.sqs.length = 0;
    this.cqs.length = 0;
    this.#order = [];
    this.#turn = 0;
    this.#ready = [];
    this.#postable = [];
    this.#commands = [];
    this.#free = [];
  }

  /** There may be something to do: it is done soon. */
  kick(): void {
    if (this.#scheduled || !this.#running) return;
    this.#scheduled = true;
    this.#context.defer(() => this.#slice());
  }

  /** The host has consumed completions: those that wait can be posted. */
  room(cq: CompletionQueue): void {
    if (cq.waiting.length === 0) return;
    this.#postable.push(cq);
    this.kick();
  }

  /** In the middle of a slice: what the host writes now, by the controller's own DMA, must wait. */
  get busy(): boolean {
    return this.#busy;
  }

  /** Completes a command; the entry is posted, in a slice, when there is room for it. */
  complete(command: Command, status: number): void {
    const sq = command.sq!;
    command.ticket += 1;
    command.state = CommandState.completing;
    command.status = status;
    this.#context.finished(command);
    sq.cq.waiting.push(command);
    if (this.#busy) this.#post(sq.cq);
    else this.room(sq.cq);
  }

  #slice(): void {
    this.#scheduled = false;
    if (!this.#running) return;
    this.#busy = true;
    this.#work();
    for (const cq of this.#told.splice(0)) if (!cq.gone) this.#context.posted(cq);
    this.#busy = false;
    if (this.#ready.length > 0 || this.#postable.length > 0 || this.#order.some(isFetchable)) this.kick();
  }

  #work(): void {
    this.#bytesLeft = SLICE_BYTES;
    for (const cq of this.#postable.splice(0)) if (!cq.gone) this.#post(cq);
    for (const command of this.#ready.splice(0)) {
      if (command.state === CommandState.ready) this.#run(command); // else it was aborted meanwhile
      if (!this.#running) return;
    }
    let commands = SLICE_COMMANDS;
    let idle = 0;
    while (this.#running && commands > 0 && this.#bytesLeft > 0 && idle < this.#order.length) {
      const sq = this.#order[this.#turn % this.#order.length]!;
      this.#turn = (this.#turn + 1) % this.#order.length;
      if (!isFetchable(sq)) idle += 1;
      else {
        idle = 0;
        commands -= 1;
        this.#fetch(sq);
      }
    }
  }

  #fetch(sq: SubmissionQueue): void {
    const command = this.#take();
    command.begin(sq);
    sq.locate(sq.head);
    const { dma } = this.#context;
    const status = dma.read(sq.lo, sq.hi, command.bytes);
    if (status === TranslateStatus.ok) {
      sq.head = sq.next(sq.head);
      command.counted = true;
      sq.outstanding += 1;
      this.#context.execute(command);
      if (command.state !== CommandState.running)
        this.#uncount(command); // held, for as long as it likes
      else if (takesItsTime(command)) this.#runLater(command);
      else this.#run(command);
      return;
    }
    this.#release(command);
    if (status === TranslateStatus.fault) {
      this.#context.fatal(`entry ${sq.head} of submission queue ${sq.id} cannot be read`);
      return;
    }
    sq.parked = true;
    dma.park((ok) => {
      if (sq.gone) return;
      sq.parked = false;
      if (ok) this.kick();
      else this.#context.fatal(`entry ${sq.head} of submission queue ${sq.id} cannot be read`);
    });
  }

  /** Begins with a command after programs had a turn. */
  #runLater(command: Command): void {
    command.state = CommandState.ready;
    this.#ready.push(command);
    if (this.#scheduled) return;
    this.#scheduled = true;
    this.#context.deferPastPrograms(() => this.#slice());
  }

  /** Goes on with a command until it is done, stalls, or has had its share of the slice. */
  #run(command: Command): void {
    command.state = CommandState.running;
    command.ticket += 1;
    const progress = command.status === 0 ? this.#transfer(command) : Progress.done;
    if (progress === Progress.done) this.complete(command, command.status);
    else if (progress === Progress.more) this.#resumeLater(command);
    else this.#park(command);
  }

  #resumeLater(command: Command): void {
    command.state = CommandState.ready;
    this.#ready.push(command);
    this.kick();
  }

  #park(command: Command): void {
    const ticket = command.ticket;
    command.state = CommandState.parked;
    this.#context.dma.park((ok) => {
      if (command.ticket !== ticket) return; // aborted meanwhile
      if (!ok) command.status = StatusCode.DATA_TRANSFER_ERROR;
      this.#resumeLater(command);
    });
  }

  /** Moves the data, in as many parts as there are. When done, the status is in the command. */
  #transfer(command: Command): Progress {
    for (;;) {
      const progress = this.#transferPart(command);
      const { received } = command;
      if (progress !== Progress.done || command.status !== 0 || !received) return progress;
      command.received = undefined;
      command.status = received();
      if (command.status !== 0) return Progress.done;
    }
  }

  #transferPart(command: Command): Progress {
    while (command.left > 0) {
      if (this.#bytesLeft <= 0) return Progress.more;
      if (command.transfer === Transfer.mediaZero) {
        this.#zero(command);
        if (command.status !== 0) return Progress.done;
        continue;
      }
      const { prp } = command;
      if (prp.run === 0) {
        const found = prp.fill(this.#context.dma, CHUNK);
        if (found === Walk.stalled) return Progress.stalled;
        if (found !== Walk.ok) {
          const bad = found === Walk.badOffset;
          command.status = bad ? StatusCode.PRP_OFFSET_INVALID : StatusCode.DATA_TRANSFER_ERROR;
          return Progress.done;
        }
      }
      const status = this.#move(command, Math.min(prp.run, CHUNK));
      if (command.status !== 0) return Progress.done;
      if (status === TranslateStatus.stalled) return Progress.stalled;
    }
    if (command.through && !command.media!.flush()) command.status = StatusCode.WRITE_FAULT;
    return Progress.done;
  }

  /** Moves up to `bytes` of the run between host memory and what the command is about. */
  #move(command: Command, bytes: number): TranslateStatus {
    const { dma } = this.#context;
    const { prp, transfer } = command;
    const view = this.#window(bytes);
    const toHost = transfer === Transfer.toHost || transfer === Transfer.mediaRead;
    if (toHost && !this.#load(command, view)) {
      command.status = StatusCode.UNRECOVERED_READ;
      return TranslateStatus.ok;
    }
    const status = toHost ? dma.write(prp.lo, prp.hi, view) : dma.read(prp.lo, prp.hi, view);
    if (status === TranslateStatus.fault) {
      command.status = StatusCode.DATA_TRANSFER_ERROR;
      return status;
    }
    const moved = status === TranslateStatus.ok ? bytes : dma.done;
    if (moved > 0 && !toHost) {
      command.status = this.#store(command, this.#window(moved));
      if (command.status !== 0) return status;
    }
    prp.consume(moved);
    command.offset += moved;
    command.left -= moved;
    this.#bytesLeft -= moved;
    return status;
  }

  /** The scratch buffer's first bytes; the same object while the length stays the same. */
  #window(bytes: number): Uint8Array {
    if (this.#view.length !== bytes) this.#view = this.#scratch.subarray(0, bytes);
    return this.#view;
  }

  /** Fills `view` with what goes to the host. Behind the end of a payload there are zeroes. */
  #load(command: Command, view: Uint8Array): boolean {
    if (command.transfer === Transfer.mediaRead) return command.media!.read(command.offset, view);
    view.fill(0);
    view.set(command.payload?.subarray(command.offset, command.offset + view.length) ?? []);
    return true;
  }

  /** Takes what came from the host; the status. */
  #store(command: Command, view: Uint8Array): number {
    if (command.transfer === Transfer.mediaWrite)
      return command.media!.write(command.offset, view) ? StatusCode.SUCCESS : StatusCode.WRITE_FAULT;
    if (command.transfer === Transfer.mediaCompare) return this.#compare(command, view);
    command.payload?.set(view, command.offset);
    return StatusCode.SUCCESS;
  }

  #compare(command: Command, view: Uint8Array): number {
    const stored = this.#stored.subarray(0, view.length);
    if (!command.media!.read(command.offset, stored)) return StatusCode.UNRECOVERED_READ;
    return Buffer.compare(stored, view) === 0 ? StatusCode.SUCCESS : StatusCode.COMPARE_FAILURE;
  }

  #zero(command: Command): void {
    const bytes = Math.min(command.left, CHUNK);
    if (!command.media!.zero(command.offset, bytes)) command.status = StatusCode.WRITE_FAULT;
    command.offset += bytes;
    command.left -= bytes;
    this.#bytesLeft -= bytes;
  }

  /** Posts what waits, as far as there is room. */
  #post(cq: CompletionQueue): void {
    let posted = false;
    while (cq.waiting.length > 0 && !cq.parked && !cq.full) {
      const command = cq.waiting[0]!;
      const status = this.#write(cq, command);
      if (status === TranslateStatus.ok) {
        cq.waiting.shift();
        cq.tail = cq.next(cq.tail);
        if (cq.tail === 0) cq.phase ^= 1;
        this.#release(command);
        posted = true;
      } else if (status === TranslateStatus.stalled) this.#parkQueue(cq);
      else {
        this.#context.fatal(`entry ${cq.tail} of completion queue ${cq.id} cannot be written`);
        return;
      }
    }
    if (posted && !this.#told.includes(cq)) this.#told.push(cq);
  }

  #parkQueue(cq: CompletionQueue): void {
    cq.parked = true;
    this.#context.dma.park((ok) => {
      if (cq.gone) return;
      cq.parked = false;
      if (ok) this.room(cq);
      else this.#context.fatal(`entry ${cq.tail} of completion queue ${cq.id} cannot be written`);
    });
  }

  /**
   * Writes a completion entry. A host that polls must not see the new phase before the rest: the entry is written with
   * the phase the host sees already, then the byte with the phase.
   */
  #write(cq: CompletionQueue, command: Command): TranslateStatus {
    const sq = command.sq!;
    const words = this.#entryWords;
    words[0] = command.result;
    words[1] = 0;
    words[2] = (sq.id << 16) | sq.head;
    words[3] = (statusBits(command.status, cq.phase ^ 1) << 16) | command.cid;
    cq.locate(cq.tail);
    const { dma } = this.#context;
    const status = dma.write(cq.lo, cq.hi, this.#entry);
    if (status !== TranslateStatus.ok) return status;
    this.#phaseByte[0]! ^= 1;
    return dma.write(cq.lo + PHASE_BYTE, cq.hi, this.#phaseByte);
  }

  #take(): Command {
    const free = this.#free.pop();
    if (free) return free;
    const command = new Command();
    this.#commands.push(command);
    return command;
  }

  #release(command: Command): void {
    this.#uncount(command);
    command.state = CommandState.free;
    command.sq = undefined;
    command.payload = undefined;
    command.received = undefined;
    this.#free.push(command);
  }

  #uncount(command: Command): void {
    if (command.counted && command.sq) command.sq.outstanding -= 1;
    command.counted = false;
  }
}

const takesItsTime = ({ status, left, transfer }: Command): boolean =>
  status === 0 && left > PROMPT_BYTES && transfer !== Transfer.mediaZero;

const isUnderWay = ({ state }: Command): boolean =>
  state === CommandState.parked || state === CommandState.ready || state === CommandState.held;

const isFetchable = (sq: SubmissionQueue): boolean =>
  sq.head !== sq.tail && !sq.parked && sq.outstanding < OUTSTANDING && sq.cq.waiting.length === 0;
