/**
 * The admin command set (§5): queues, Identify, features, log pages, Abort, Asynchronous Event Request. Each command
 * is checked, then either done at once or given the data the engine is to move.
 *
 * Left out, and answered as invalid opcodes: namespace management, Format NVM, firmware download, self-test, Keep Alive
 * (KAS is 0), directives, sanitize, security, doorbell buffers. Log pages are the controller's: none of a namespace.
 */
import type { Engine } from "./engine.ts";
import { EXTENDED_HOST_IDENTIFIER, type Features, HOST_IDENTIFIER_BYTES } from "./features.ts";
import {
  ASYNC_EVENT_LIMIT,
  type Identity,
  identifyActive,
  identifyController,
  identifyDescriptors,
  identifyNamespace,
} from "./identify.ts";
import { COMPOSITE_TEMPERATURE, type Logs, TEMPERATURE_WARNING } from "./logs.ts";
import { ALL_NAMESPACES, type Namespace } from "./namespace.ts";
import { type Command, CommandState, CompletionQueue, SubmissionQueue, Transfer } from "./queue.ts";
import {
  Admin as AdminOpcode,
  AsyncEvent,
  Cc,
  Cns,
  CQE_LG2,
  Feature,
  IDENTIFY_BYTES,
  SQE_LG2,
  SqeWord,
  StatusCode,
} from "./spec.ts";

export interface AdminContext {
  readonly engine: Engine;
  readonly features: Features;
  readonly logs: Logs;
  readonly identity: Identity;
  /** Number 1 first. */
  readonly namespaces: readonly Namespace[];
  readonly maxTransfer: number;
  /** I/O queue pairs, entries of one, interrupt vectors. */
  readonly queues: number;
  readonly queueEntries: number;
  readonly vectors: number;
  readonly now: () => number;
  /** The CC register. */
  readonly configuration: () => number;
}

/** CDW10 and CDW11 of the commands that create queues (§5.3, §5.4). */
const PHYSICALLY_CONTIGUOUS = 1;
const INTERRUPTS_ENABLED = 2;
/** Get Log Page (§5.14): keep the event masked. */
const RETAIN_ASYNC_EVENT = 1 << 15;
/** Set Features (§5.21): keep over power cycles. */
const SAVE = 0x8000_0000;
const FEATURE_ID = 0xff;
/** Result of Abort (§5.1): the command was not aborted. */
const NOT_ABORTED = 1;
/** CDW10 of Get Features: Select. */
const selectOf = (cdw10: number): number => (cdw10 >>> 8) & 7;

export class Admin {
  readonly #context: AdminContext;
  /** Asynchronous event requests without an event (§5.2). */
  #held: Command[] = [];
  /** Events nobody has asked for yet, each once. */
  #events: AsyncEvent[] = [];
  /** Types that were reported and whose log page was not read since, by number. */
  #masked = 0;

  constructor(context: AdminContext) {
    this.#context = context;
  }

  /** Controller reset. */
  clear(): void {
    this.#held = [];
    this.#events = [];
    this.#masked = 0;
  }

  /** Sets up an admin command; returns the status it completes with unless data is to be moved or it is held. */
  decode(command: Command): number {
    switch (command.opcode) {
      case AdminOpcode.DELETE_SQ:
        return this.#deleteSq(command);
      case AdminOpcode.CREATE_SQ:
        return this.#createSq(command);
      case AdminOpcode.GET_LOG_PAGE:
        return this.#getLogPage(command);
      case AdminOpcode.DELETE_CQ:
        return this.#deleteCq(command);
      case AdminOpcode.CREATE_CQ:
        return this.#createCq(command);
      case AdminOpcode.IDENTIFY:
        return this.#identify(command);
      case AdminOpcode.ABORT:
        return this.#abort(command);
      case AdminOpcode.SET_FEATURES:
        return this.#setFeatures(command);
      case AdminOpcode.GET_FEATURES:
        return this.#getFeatures(command);
      case AdminOpcode.ASYNC_EVENT:
        return this.#holdRequest(command);
      default:
        return StatusCode.INVALID_OPCODE;
    }
  }

  /** Something happened that the host may want to know. */
  report(event: AsyncEvent): void {
    if (this.#masked & (1 << event.type) || this.#events.includes(event)) return;
    this.#events.push(event);
    this.#deliver();
  }

  /** Completes held requests with events of types that are not masked. */
  #deliver(): void {
    for (let i = 0; i < this.#events.length && this.#held.length > 0; ) {
      const event = this.#events[i]!;
      if (this.#masked & (1 << event.type)) {
        i += 1;
        continue;
      }
      this.#events.splice(i, 1);
      this.#masked |= 1 << event.type;
      const request = this.#held.shift()!;
      request.result = event.type | (event.info << 8) | (event.page << 16);
      this.#context.engine.complete(request, StatusCode.SUCCESS);
    }
  }

  #holdRequest(command: Command): number {
    if (this.#held.length > ASYNC_EVENT_LIMIT) return StatusCode.ASYNC_EVENT_LIMIT;
    command.state = CommandState.held;
    this.#held.push(command);
    this.#deliver();
    return StatusCode.SUCCESS;
  }

  /** Data the host is to get. */
  #answer(command: Command, payload: Uint8Array, length: number, offset = 0): number {
    command.transfer = Transfer.toHost;
    command.payload = payload;
    command.offset = offset;
    command.left = length;
    command.prp.start(command.words, SqeWord.PRP1, length, this.#context.engine.pageBytes);
    return StatusCode.SUCCESS;
  }

  #identify(command: Command): number {
    const { identity, namespaces } = this.#context;
    const { nsid } = command;
    const namespace = namespaces[nsid - 1];
    switch (command.cdw(10) & 0xff) {
      case Cns.NAMESPACE:
        if (!namespace) return StatusCode.INVALID_NAMESPACE;
        return this.#answer(command, identifyNamespace(identity, namespace), IDENTIFY_BYTES);
      case Cns.CONTROLLER:
        return this.#answer(command, identifyController(identity), IDENTIFY_BYTES);
      case Cns.ACTIVE_NAMESPACES:
        if (nsid >= ALL_NAMESPACES - 1) return StatusCode.INVALID_NAMESPACE;
        return this.#answer(command, identifyActive(identity, nsid), IDENTIFY_BYTES);
      case Cns.DESCRIPTORS:
        if (!namespace) return StatusCode.INVALID_NAMESPACE;
        return this.#answer(command, identifyDescriptors(identity, nsid), IDENTIFY_BYTES);
      default:
        return StatusCode.INVALID_FIELD;
    }
  }

  #getLogPage(command: Command): number {
    const { logs, now, maxTransfer } = this.#context;
    const cdw10 = command.cdw(10);
    const id = cdw10 & 0xff;
    const page = logs.page(id, now());
    if (!page) return StatusCode.INVALID_LOG_PAGE;
    if (command.nsid !== 0 && command.nsid !== ALL_NAMESPACES) return StatusCode.INVALID_FIELD;
    const length = ((cdw10 >>> 16) + (command.cdw(11) & 0xffff) * 0x1_0000 + 1) * 4;
    const offset = command.cdw(13) * 0x1_0000_0000 + command.cdw(12);
    if (length > maxTransfer || offset % 4 || offset > page.length) return StatusCode.INVALID_FIELD;
    if (!(cdw10 & RETAIN_ASYNC_EVENT)) this.#unmask(id);
    return this.#answer(command, page, length, offset);
  }

  /** The host has read a log page: events that refer to it may be told again. */
  #unmask(page: number): void {
    for (const event of Object.values(AsyncEvent))
      if (event.page === page) this.#masked &= ~(1 << event.type);
    this.#deliver();
  }

  #setFeatures(command: Command): number {
    const { features, engine } = this.#context;
    const cdw10 = command.cdw(10);
    const id = cdw10 & FEATURE_ID;
    if ((cdw10 & SAVE) !== 0) return StatusCode.FEATURE_NOT_SAVEABLE;
    if (id === Feature.HOST_IDENTIFIER) return this.#setHostIdentifier(command);
    const hasQueues = engine.sqs.some((sq) => sq && sq.id > 0) || engine.cqs.some((cq) => cq && cq.id > 0);
    const status = features.set(id, command.cdw(11), command.nsid, hasQueues);
    if (status !== StatusCode.SUCCESS) return status;
    command.result = features.result;
    if (id === Feature.TEMPERATURE_THRESHOLD) this.#measure();
    return status;
  }

  /** A threshold was set: is the temperature beyond it? */
  #measure(): void {
    const { features, logs } = this.#context;
    const outside = features.outside(COMPOSITE_TEMPERATURE);
    logs.criticalWarning = outside ? TEMPERATURE_WARNING : 0;
    if (outside && features.value(Feature.ASYNC_EVENTS) & TEMPERATURE_WARNING)
      this.report(AsyncEvent.TEMPERATURE_THRESHOLD);
  }

  #hostIdentifierLength(command: Command): number {
    return command.cdw(11) & EXTENDED_HOST_IDENTIFIER ? HOST_IDENTIFIER_BYTES : HOST_IDENTIFIER_BYTES / 2;
  }

  #setHostIdentifier(command: Command): number {
    const { features, engine } = this.#context;
    const length = this.#hostIdentifierLength(command);
    const payload = new Uint8Array(length);
    command.transfer = Transfer.fromHost;
    command.payload = payload;
    command.left = length;
    command.received = () => {
      features.hostIdentifier.fill(0);
      features.hostIdentifier.set(payload);
      return StatusCode.SUCCESS;
    };
    command.prp.start(command.words, SqeWord.PRP1, length, engine.pageBytes);
    return StatusCode.SUCCESS;
  }

  #getFeatures(command: Command): number {
    const { features } = this.#context;
    const cdw10 = command.cdw(10);
    const id = cdw10 & FEATURE_ID;
    const select = selectOf(cdw10);
    if (id === Feature.HOST_IDENTIFIER && select === 0)
      return this.#answer(command, features.hostIdentifier.slice(), this.#hostIdentifierLength(command));
    const status = features.get(id, select, command.cdw(11), command.nsid);
    if (status === StatusCode.SUCCESS) command.result = features.result;
    return status;
  }

  #abort(command: Command): number {
    const { engine } = this.#context;
    const sqid = command.cdw(10) & 0xffff;
    const target = engine.find(sqid, command.cdw(10) >>> 16);
    command.result = target ? 0 : NOT_ABORTED;
    if (!target) return StatusCode.SUCCESS;
    this.#held = this.#held.filter((one) => one !== target);
    engine.abort(target, StatusCode.ABORT_REQUESTED);
    return StatusCode.SUCCESS;
  }

  /** What both kinds of queue have in common; the status. */
  #checkQueue(command: Command, taken: boolean, entryLg2: number, wantedLg2: number): number {
    const { queues, queueEntries, engine } = this.#context;
    const id = command.cdw(10) & 0xffff;
    const size = (command.cdw(10) >>> 16) + 1;
    if (id === 0 || id > queues || taken) return StatusCode.INVALID_QUEUE_ID;
    if (size < 2 || size > queueEntries || entryLg2 !== wantedLg2) return StatusCode.INVALID_QUEUE_SIZE;
    if (!(command.cdw(11) & PHYSICALLY_CONTIGUOUS)) return StatusCode.INVALID_FIELD; // CAP.CQR
    if (command.words[SqeWord.PRP1]! & (engine.pageBytes - 1)) return StatusCode.PRP_OFFSET_INVALID;
    return StatusCode.SUCCESS;
  }

  #createCq(command: Command): number {
    const { engine, vectors, configuration } = this.#context;
    const id = command.cdw(10) & 0xffff;
    const { words } = command;
    const entryLg2 = Cc.fields.IOCQES.get([configuration()]);
    const status = this.#checkQueue(command, engine.cqs[id] !== undefined, entryLg2, CQE_LG2);
    if (status !== StatusCode.SUCCESS) return status;
    const vector = command.cdw(11) >>> 16;
    if (vector >= vectors) return StatusCode.INVALID_VECTOR;
    const interrupts = (command.cdw(11) & INTERRUPTS_ENABLED) !== 0;
    const size = (command.cdw(10) >>> 16) + 1;
    engine.addCompletionQueue(
      new CompletionQueue(id, size, words[SqeWord.PRP1]!, words[SqeWord.PRP1 + 1]!, vector, interrupts),
    );
    return StatusCode.SUCCESS;
  }

  #createSq(command: Command): number {
    const { engine, queues, configuration } = this.#context;
    const id = command.cdw(10) & 0xffff;
    const { words } = command;
    const entryLg2 = Cc.fields.IOSQES.get([configuration()]);
    const status = this.#checkQueue(command, engine.sqs[id] !== undefined, entryLg2, SQE_LG2);
    if (status !== StatusCode.SUCCESS) return status;
    const cqid = command.cdw(11) >>> 16;
    if (cqid === 0 || cqid > queues) return StatusCode.INVALID_QUEUE_ID;
    const cq = engine.cqs[cqid];
    if (!cq) return StatusCode.CQ_INVALID;
    const size = (command.cdw(10) >>> 16) + 1;
    engine.addSubmissionQueue(
      new SubmissionQueue(id, size, words[SqeWord.PRP1]!, words[SqeWord.PRP1 + 1]!, cq),
    );
    return StatusCode.SUCCESS;
  }

  #deleteSq(command: Command): number {
    const { engine } = this.#context;
    const id = command.cdw(10) & 0xffff;
    const sq = id === 0 ? undefined : engine.sqs[id];
    if (!sq) return StatusCode.INVALID_QUEUE_ID;
    engine.deleteSubmissionQueue(sq);
    return StatusCode.SUCCESS;
  }

  #deleteCq(command: Command): number {
    const { engine } = this.#context;
    const id = command.cdw(10) & 0xffff;
    const cq = id === 0 ? undefined : engine.cqs[id];
    if (!cq) return StatusCode.INVALID_QUEUE_ID;
    if (cq.users > 0) return StatusCode.INVALID_QUEUE_DELETION;
    engine.deleteCompletionQueue(cq);
    return StatusCode.SUCCESS;
  }
}
