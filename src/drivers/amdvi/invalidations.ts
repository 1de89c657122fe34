/**
 * What the driver tells an AMD-Vi unit by commands (48882, revision 3.07, §2.4): what to forget, and answers to page
 * requests. Each of them is done when it returns, except those of a guest, which are pushed one by one and done by `sync`.
 */

import {
  Command,
  CompletePpr,
  DeviceCommand,
  InvalidateIotlb,
  InvalidatePages,
  Opcode,
} from "../../hardware/amdvi/queue-spec.ts";
import { PageResponse as Code } from "../../hardware/ats.ts";
import { NO_PASID } from "../../hardware/unit.ts";
import type { PageResponse } from "../../iommu/driver.ts";
import { coverage, EVERYTHING, type Range, sized } from "../range.ts";
import type { CommandBuffer } from "./command-buffer.ts";

const WORD = 2 ** 32;
const { S, PDE, GN } = InvalidatePages.fields;
/** Index of the first word of the address, the same in all commands. */
const ADDRESS = InvalidatePages.fields.ADDRESS.word;
const DEVICES = 2 ** 16;

export class Invalidations {
  readonly #buffer: CommandBuffer;
  readonly #all: boolean;
  readonly #words = new Uint32Array(Command.words);

  /** `all`: the unit has INVALIDATE_IOMMU_ALL. */
  constructor(buffer: CommandBuffer, all: boolean) {
    this.#buffer = buffer;
    this.#all = all;
  }

  /** Everything that is remembered of devices and translations. */
  everything(): void {
    if (this.#all) {
      this.#begin(Opcode.INVALIDATE_IOMMU_ALL);
      this.#buffer.push(this.#words);
    } else
      for (let id = 0; id < DEVICES; id++) {
        this.#device(id);
        this.#pages(id, EVERYTHING);
      }
    this.#buffer.sync();
  }

  /** The entry of the device, and what its GCR3 table says. */
  device(rid: number): void {
    this.#device(rid);
    this.#buffer.sync();
  }

  /** Host addresses of a domain. */
  pages(domainId: number, range: Range): void {
    this.#pages(domainId, range);
    this.#buffer.sync();
  }

  /** Guest addresses of a PASID, and where its table is. */
  guestPages(domainId: number, pasid: number, range: Range): void {
    this.#begin(Opcode.INVALIDATE_IOMMU_PAGES);
    InvalidatePages.fields.DOMAIN.set(this.#words, domainId);
    InvalidatePages.fields.PASID.set(this.#words, pasid);
    GN.set(this.#words, 1);
    this.#range(range);
    this.#buffer.push(this.#words);
    this.#buffer.sync();
  }

  /** What the device itself remembers of requests without PASID (`NO_PASID`), or with one. */
  deviceTlb(rid: number, pasid: number, range: Range): void {
    this.#begin(Opcode.INVALIDATE_IOTLB_PAGES);
    const { DEVICE, PASID_7, PASID_15, PASID_19 } = InvalidateIotlb.fields;
    DEVICE.set(this.#words, rid);
    if (pasid !== NO_PASID) {
      GN.set(this.#words, 1);
      PASID_7.set(this.#words, pasid & 0xff);
      PASID_15.set(this.#words, (pasid >>> 8) & 0xff);
      PASID_19.set(this.#words, pasid >>> 16);
    }
    this.#address(range);
    this.#buffer.push(this.#words);
    this.#buffer.sync();
  }

  /** §2.4.7 The answer to a group of page requests. */
  respond(rid: number, { pasid, group, code }: PageResponse): void {
    this.#begin(Opcode.COMPLETE_PPR_REQUEST);
    const { DEVICE, PASID, TAG, CODE } = CompletePpr.fields;
    DEVICE.set(this.#words, rid);
    if (pasid !== undefined) {
      CompletePpr.fields.GN.set(this.#words, 1);
      PASID.set(this.#words, pasid);
    }
    TAG.set(this.#words, group);
    CODE.set(this.#words, Code[code]);
    this.#buffer.push(this.#words);
    this.#buffer.sync();
  }

  /** A command as it is. */
  push(words: Uint32Array): void {
    this.#buffer.push(words);
  }
  sync(): void {
    this.#buffer.sync();
  }

  #begin(opcode: number): void {
    this.#words.fill(0);
    Command.fields.OPCODE.set(this.#words, opcode);
  }

  #device(rid: number): void {
    this.#begin(Opcode.INVALIDATE_DEVTAB_ENTRY);
    DeviceCommand.fields.DEVICE.set(this.#words, rid);
    this.#buffer.push(this.#words);
  }

  #pages(domainId: number, range: Range): void {
    this.#begin(Opcode.INVALIDATE_IOMMU_PAGES);
    InvalidatePages.fields.DOMAIN.set(this.#words, domainId);
    this.#range(range);
    this.#buffer.push(this.#words);
  }

  #range(range: Range): void {
    PDE.set(this.#words, range.leavesOnly ? 0 : 1);
    this.#address(range);
  }

  /** §2.4.3 The smallest block that holds the range. */
  #address(range: Range): void {
    const { page, lg2 } = coverage(range);
    const address = sized(page, lg2);
    S.set(this.#words, lg2 > 0 ? 1 : 0);
    this.#words[ADDRESS]! |= address % WORD;
    this.#words[ADDRESS + 1] = Math.floor(address / WORD);
  }
}
