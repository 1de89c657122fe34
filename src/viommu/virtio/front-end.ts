/**
 * The virtio-iommu that a VMM shows to its guest (virtio 1.3, §5.13): a virtio device on memory-mapped I/O with a queue of
 * requests, which become mappings of the host (`domains.ts`), and a queue of events, into which accesses of its endpoints go that
 * the host could not translate, where the host can tell of them. Where nothing may pass untranslated, it does not offer BYPASS_CONFIG. Left
 * out: the features MMIO and BYPASS, the latter of which BYPASS_CONFIG supersedes.
 */
import type { EventSink } from "../../base/events.ts";
import { type PageRequest, type PageResponder, PageResponse } from "../../hardware/ats.ts";
import { Access } from "../../hardware/unit.ts";
import type { HostMemory } from "../../memory/host-memory.ts";
import type { PageRequestTaker } from "../page-groups.ts";
import type { Domains } from "./domains.ts";
import { MmioDevice, type VirtioModel } from "./mmio-device.ts";
import { carryOut } from "./requests.ts";
import {
  Config,
  DEVICE_ID,
  FaultFlag,
  FaultReason,
  FaultReport,
  Feature,
  Queue,
  ReservedMemory,
} from "./spec.ts";

export interface VirtioIommuOptions {
  readonly name: string;
  /** The guest's. */
  readonly memory: HostMemory;
  readonly events: EventSink;
  /** Interrupts the guest. */
  readonly interrupt: () => void;
  /** Bit n: pages of 2^n bytes. */
  readonly pageSizes: bigint;
  /** Addresses it translates: [start, end). */
  readonly input: { readonly start: number; readonly end: number };
  /** Most reserved ranges that one of its endpoints has. */
  readonly reservedRanges: number;
  /** Endpoints can be let pass untranslated. Default true. */
  readonly bypass?: boolean;
}

/** Domains have 16 bits. */
const LAST_DOMAIN = 2 ** 16 - 1;
/** Events that wait for a buffer of the driver; others are lost. */
const MOST_EVENTS = 64;
const { INPUT_RANGE, DOMAIN_RANGE, MAP_UNMAP, PROBE, BYPASS_CONFIG } = Feature;

export class VirtioIommu implements PageRequestTaker {
  readonly model = "virtio";
  readonly name: string;
  /** Set by whoever handles its interrupt. */
  onInterrupt: (() => void) | undefined;
  /** Told that what an endpoint wanted is refused. */
  onPageResponse: PageResponder = () => {};
  /** Events that found no buffer and no room to wait. */
  lostEvents = 0;
  readonly #options: VirtioIommuOptions;
  readonly #device: MmioDevice;
  readonly #probeBytes: number;
  readonly #waiting: Uint8Array[] = [];
  #domains: Domains | undefined;

  constructor(options: VirtioIommuOptions) {
    this.name = options.name;
    this.#options = options;
    this.#probeBytes = options.reservedRanges * ReservedMemory.size;
    this.#device = new MmioDevice(this.#model(), options);
  }

  /** Who makes the host follow; once, before the guest runs. */
  connect(domains: Domains): void {
    this.#domains = domains;
  }

  mmioRead(offset: number, width: 4 | 8): bigint {
    return this.#device.mmioRead(offset, width);
  }
  mmioWrite(offset: number, width: 4 | 8, value: bigint): void {
    this.#device.mmioWrite(offset, width, value);
  }

  /** An endpoint wants a page that the host has nothing for: its guest is told, and it is refused. */
  requestPage({ rid, pasid, lo, hi, access, group, last }: PageRequest): void {
    const { DOMAIN, MAPPING } = FaultReason;
    const { READ, WRITE, ADDRESS } = FaultFlag;
    this.#report(
      FaultReport.bytes({
        reason: this.#domains?.isAttached(rid) ? MAPPING : DOMAIN,
        flags: (access & Access.write ? WRITE : 0) | (access & Access.read ? READ : 0) | ADDRESS,
        endpoint: rid,
        address: (BigInt(hi >>> 0) << 32n) | BigInt(lo >>> 0),
      }),
    );
    if (last) this.onPageResponse(rid, pasid, group, PageResponse.invalid);
  }

  #model(): VirtioModel {
    const config = () => this.#config();
    const { bypass = true } = this.#options;
    return {
      name: this.name,
      deviceId: DEVICE_ID,
      features: INPUT_RANGE | DOMAIN_RANGE | MAP_UNMAP | PROBE | (bypass ? BYPASS_CONFIG : 0n),
      queues: Object.keys(Queue).length,
      get config() {
        return config();
      },
      configure: (offset, value, accepted) => this.#configure(offset, value, accepted),
      serve: (queue) => (queue === Queue.requests ? this.#serveRequests() : this.#tellEvents()),
      reset: () => {
        this.#waiting.length = 0;
        this.#domains?.reset();
      },
    };
  }

  #config(): Uint8Array {
    const { pageSizes, input } = this.#options;
    return Config.bytes({
      page_size_mask: pageSizes,
      input_start: BigInt(input.start),
      input_end: BigInt(input.end) - 1n,
      domain_start: 0,
      domain_end: LAST_DOMAIN,
      probe_size: this.#probeBytes,
      bypass: this.#domains?.bypass ? 1 : 0,
    });
  }

  #configure(offset: number, value: number, accepted: bigint): void {
    const bypass = value & 0xff;
    if (offset !== Config.offsets.bypass || (accepted & BYPASS_CONFIG) === 0n || bypass > 1) return;
    this.#domains?.setBypass(bypass === 1);
  }

  #serveRequests(): void {
    const queue = this.#device.queue(Queue.requests);
    const domains = this.#domains;
    if (!queue || !domains) return;
    const { accepted } = this.#device;
    const context = { domains, accepted, lastDomain: LAST_DOMAIN, probeBytes: this.#probeBytes };
    for (let left = queue.waiting; left > 0; left--) {
      const chain = queue.take();
      if (!chain) return;
      queue.use(chain, carryOut(chain, context));
      this.#device.signal(queue);
    }
  }

  #report(event: Uint8Array): void {
    if (this.#waiting.length >= MOST_EVENTS) {
      this.lostEvents += 1;
      const { events, name } = this.#options;
      if (events.on) events.emit("device", { device: name, what: "an event is lost: the guest takes none" });
      return;
    }
    this.#waiting.push(event);
    this.#device.attempt(() => this.#tellEvents());
  }

  /** As many events as there are buffers for. */
  #tellEvents(): void {
    const queue = this.#device.queue(Queue.events);
    while (queue && this.#waiting.length > 0) {
      const chain = queue.take();
      if (!chain) return;
      const event = this.#waiting.shift()!;
      const fits = chain.room >= event.length;
      if (fits) chain.write(event);
      queue.use(chain, fits ? event.length : 0);
      this.#device.signal(queue);
    }
  }
}
