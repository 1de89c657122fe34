/**
 * The AMD host through encoded requests: domains as Linux 7.2 makes them, page requests, dirty pages; and with the extension
 * `amd-nesting` guests' tables above the host's, and their commands.
 */
import { afterEach, describe, expect, it } from "vitest";
import { AmdGuest, DOMAIN, type DteFields, FAITHFUL } from "../../test/support/amd-guest.ts";
import { MEMORY, PAGE, SCRATCH } from "../../test/support/nested-guest.ts";
import { outcome } from "../../test/support/vfio-client.ts";
import {
  CompletionWait,
  DeviceCommand,
  InvalidateAll,
  InvalidateIotlb,
  InvalidatePages,
  Opcode,
} from "../hardware/amdvi/queue-spec.ts";
import { ExtendedFeature, Register } from "../hardware/amdvi/spec.ts";
import * as uapi from "../uapi/iommufd.ts";
import { IOMMU_HW_INFO_TYPE_AMD, IommuHwInfoAmd } from "../uapi/vendor/amd.ts";

const ADDRESS = 0x12_3400_0000;
const TEXT = "what the function wrote";
const VIRTUAL_ID = 0x77n;
const { NEST, DIRTY, PASID } = {
  NEST: uapi.IOMMU_HWPT_ALLOC_NEST_PARENT,
  DIRTY: uapi.IOMMU_HWPT_ALLOC_DIRTY_TRACKING,
  PASID: uapi.IOMMU_HWPT_ALLOC_PASID,
};

let guest: AmdGuest;
afterEach(() => guest.close());

const attach = (hwpt: number, pasid?: number): unknown =>
  outcome(() => guest.client.attachTo(guest.device, hwpt, pasid));
const hwpt = (flags: number, ioas = guest.ioas): number => guest.client.hwpt(guest.fd, guest.id, ioas, flags);
/** An IOAS with a page of the program's at 0x1000. */
const space = (): { readonly ioas: number; readonly page: number } => {
  const page = guest.page();
  const ioas = guest.client.ioas(guest.fd);
  guest.client.mapAt(guest.fd, ioas, 0x1000, MEMORY.va + page - MEMORY.ipa, PAGE);
  return { ioas, page };
};
const unmapAll = (): void => {
  guest.call(uapi.IOMMU_IOAS_UNMAP, uapi.IommuIoasUnmap, {
    ioas_id: guest.ioas,
    iova: BigInt(MEMORY.ipa),
    length: BigInt(MEMORY.bytes),
  });
};

describe("the host as Linux 7.2 is", () => {
  it("tells its feature registers, and that it tracks dirty pages", () => {
    guest = new AmdGuest(FAITHFUL);
    const members = { dev_id: guest.id, data_len: IommuHwInfoAmd.size, data_uptr: BigInt(SCRATCH) };
    const told = guest.call(uapi.IOMMU_GET_HW_INFO, uapi.IommuHwInfo, members);
    expect(told.out_data_type).toBe(IOMMU_HW_INFO_TYPE_AMD);
    const bytes = new Uint8Array(IommuHwInfoAmd.size);
    guest.task.memory.read(BigInt(SCRATCH), bytes);
    const { efr, efr2 } = IommuHwInfoAmd.read(bytes);
    const { GT_SUP, PPR_SUP, HD_SUP, HATS, GATS, GLX_SUP, PAS_MAX } = ExtendedFeature.fields;
    expect([GT_SUP, PPR_SUP, HD_SUP, HATS, GATS, GLX_SUP, PAS_MAX].map((field) => field.of(efr))).toEqual([
      ...[1n, 1n, 1n, 2n, 0n, 2n, 19n],
    ]);
    expect(efr2).toBe(8n);
    expect(told.out_capabilities & BigInt(uapi.IOMMU_HW_CAP_DIRTY_TRACKING)).not.toBe(0n);
  });

  it("shows its unit in /sys/class/iommu with what its feature registers say", () => {
    guest = new AmdGuest(FAITHFUL);
    const tree = guest.machine.tree();
    const { unit } = guest.machine.units.get("ivhd0")!;
    const features = unit.mmioRead(Register.EXT_FEATURE, 8).toString(16);
    const contentOf = (name: string): string => {
      const found = tree.find(({ path }) => path === `/sys/devices/virtual/iommu/ivhd0/amd-iommu/${name}`);
      return found?.kind === "file" ? Buffer.from(found.content).toString().trim() : "";
    };
    expect([contentOf("cap"), contentOf("features")]).toEqual(["90b000f", features]);
    expect(tree).toContainEqual(expect.objectContaining({ path: "/sys/class/iommu/ivhd0", kind: "link" }));
  });

  it("has page tables below guests' and for dirty pages together, and for PASIDs alone", () => {
    guest = new AmdGuest(FAITHFUL);
    const made = (flags: number) => outcome(() => typeof hwpt(flags) === "number");
    expect([0, DIRTY, NEST, NEST | DIRTY, PASID].map(made)).toEqual([true, true, true, true, true]);
    expect([PASID | NEST, PASID | DIRTY, PASID | NEST | DIRTY].map(made)).toEqual([
      ...["EOPNOTSUPP", "EOPNOTSUPP", "EOPNOTSUPP"],
    ]);
  });

  it("makes virtual IOMMUs on nest parents, and nothing on them", () => {
    guest = new AmdGuest(FAITHFUL);
    const parent = hwpt(NEST);
    const viommu = guest.viommu(parent);
    expect(outcome(() => typeof guest.viommu(parent, 7))).toBe("number");
    expect(outcome(() => guest.viommu(parent, 0))).toBe("EOPNOTSUPP");
    expect(outcome(() => guest.viommu(hwpt(0)))).toBe("EINVAL");
    expect(outcome(() => typeof guest.vdevice(viommu, VIRTUAL_ID))).toBe("number");
    const entry = guest.entry(guest.gcr3([guest.page()]));
    for (const below of [viommu, parent])
      expect(outcome(() => guest.nested(below, entry))).toBe("EOPNOTSUPP");
    expect(guest.invalidate(viommu, [0n])).toEqual({ done: 0, error: "EOPNOTSUPP" });
    expect(outcome(() => guest.client.destroy(guest.fd, parent))).toBe("EBUSY");
  });

  it("gives PASIDs page tables of their own beside one for PASIDs, and beside no other", () => {
    guest = new AmdGuest(FAITHFUL);
    const [one, two] = [space(), space()];
    const [first, second] = [hwpt(PASID, one.ioas), hwpt(PASID, two.ioas)];
    expect([attach(first), attach(second, 7)]).toEqual([first, second]);
    expect([guest.dma(0x1000, "a"), guest.dma(0x1000, "b", 7), guest.dma(0x1000, "c", 8)]).toEqual([
      ...["done", "done", "fault"],
    ]);
    expect([guest.text(one.page, 1), guest.text(two.page, 1)]).toEqual(["a", "b"]);
    expect(attach(hwpt(0))).toBe("EINVAL"); // iommufd: it was not allocated for PASIDs
    guest.client.detachFrom(guest.device, 7);
    expect(guest.dma(0x1000, "d", 7)).toBe("fault");
    const plain = hwpt(0, one.ioas);
    expect(attach(plain)).toBe(plain);
    expect(attach(second, 7)).toBe("EINVAL");
  });

  it.each([undefined, 5])("lets a function ask for pages that are not there (PASID %s)", (pasid) => {
    guest = new AmdGuest(FAITHFUL);
    const { ioas, page } = space();
    const faults = guest.faultQueue();
    const asking = guest.call(uapi.IOMMU_HWPT_ALLOC, uapi.IommuHwptAlloc, {
      flags: PASID | uapi.IOMMU_HWPT_FAULT_ID_VALID,
      dev_id: guest.id,
      pt_id: ioas,
      fault_id: faults.id,
    }).out_hwpt_id;
    attach(asking);
    if (pasid !== undefined) attach(asking, pasid);
    expect(guest.dma(0x9000, TEXT, pasid)).toBe("waits");
    const [fault, ...more] = guest.takeFaults(faults.fd);
    expect(more).toEqual([]);
    expect(fault).toMatchObject({ dev_id: guest.id, addr: 0x9000n, perm: 2, pasid: pasid ?? 0 });
    guest.client.mapAt(guest.fd, ioas, 0x9000, MEMORY.va + page - MEMORY.ipa, PAGE);
    guest.answerFault(faults.fd, fault!.cookie, uapi.IOMMUFD_PAGE_RESP_SUCCESS);
    expect(guest.dmaState()).toBe("done");
    expect(guest.text(page, TEXT.length)).toBe(TEXT);
    expect(guest.dma(0x20_0000, TEXT, pasid)).toBe("waits");
    guest.answerFault(faults.fd, guest.takeFaults(faults.fd)[0]!.cookie, uapi.IOMMUFD_PAGE_RESP_INVALID);
    expect(guest.dmaState()).toBe("fault");
  });

  it.each([0, NEST])("tells which pages a function has written to (flags %i besides)", (flags) => {
    guest = new AmdGuest(FAITHFUL);
    const tracking = hwpt(DIRTY | flags);
    attach(tracking);
    const { ipa } = MEMORY;
    const read = (): bigint => {
      guest.task.memory.write(BigInt(SCRATCH), new Uint8Array(32));
      guest.call(uapi.IOMMU_HWPT_GET_DIRTY_BITMAP, uapi.IommuHwptGetDirtyBitmap, {
        hwpt_id: tracking,
        iova: BigInt(ipa),
        length: BigInt(MEMORY.bytes),
        page_size: BigInt(PAGE),
        data: BigInt(SCRATCH),
      });
      const bytes = new Uint8Array(8);
      guest.task.memory.read(BigInt(SCRATCH), bytes);
      return new DataView(bytes.buffer).getBigUint64(0, true);
    };
    const track = (on: number): void =>
      void guest.call(uapi.IOMMU_HWPT_SET_DIRTY_TRACKING, uapi.IommuHwptSetDirtyTracking, {
        flags: on,
        hwpt_id: tracking,
      });
    expect(guest.dma(ipa, TEXT)).toBe("done");
    track(uapi.IOMMU_HWPT_DIRTY_TRACKING_ENABLE);
    expect(read()).toBe(0n);
    expect(guest.dma(ipa + 5 * PAGE, TEXT)).toBe("done");
    expect(read() & (1n << 5n)).not.toBe(0n);
    expect(read()).toBe(0n);
    expect(guest.dma(ipa + 5 * PAGE, TEXT)).toBe("done");
    expect(read()).not.toBe(0n);
    track(0);
    expect(guest.dma(ipa + 5 * PAGE, TEXT)).toBe("done");
    expect(read()).toBe(0n);
  });
});

let parent: number;
let viommu: number;
const start = (text?: string): void => {
  guest = new AmdGuest(text);
  parent = hwpt(NEST);
  viommu = guest.viommu(parent);
};
/** A guest's table with a page at ADDRESS, attached. */
const attached = (more: DteFields = {}, fault?: number) => {
  start();
  guest.vdevice(viommu, VIRTUAL_ID);
  const table = guest.page();
  const page = guest.page();
  guest.map(table, ADDRESS, page);
  const gcr3 = guest.gcr3([table]);
  const nested = guest.nested(viommu, guest.entry(gcr3, more), fault === undefined ? {} : { fault });
  expect(attach(nested)).toBe(nested);
  return { table, page, gcr3, nested };
};

describe("with amd-nesting, a guest's device table entry", () => {
  it("has the guest's tables translate, which lie above the host's", () => {
    const { page } = attached();
    expect(guest.dma(ADDRESS + 0x10, TEXT)).toBe("done");
    expect(guest.text(page + 0x10, TEXT.length)).toBe(TEXT);
    expect(guest.dma(page, TEXT)).toBe("fault"); // the guest's own address means nothing to the function
    guest.client.detachFrom(guest.device);
    expect(guest.dma(ADDRESS, TEXT)).toBe("fault");
  });

  it("has its PASIDs in the guest's GCR3 table, and no others", () => {
    const { gcr3, page, nested } = attached();
    expect(guest.dma(ADDRESS, TEXT, 5)).toBe("fault");
    const table = guest.page();
    const other = guest.page();
    guest.map(table, ADDRESS, other);
    guest.gcr3Entry(gcr3, 5, table);
    expect(guest.dma(ADDRESS, TEXT, 5)).toBe("done");
    expect(guest.text(other, TEXT.length)).toBe(TEXT);
    expect(guest.text(page, 1)).toBe("\0");
    expect(attach(nested, 7)).toBe("EINVAL"); // iommufd: it was not allocated for PASIDs
    expect(outcome(() => guest.nested(viommu, guest.entry(gcr3), { flags: PASID }))).toBe("EOPNOTSUPP");
    expect(attach(hwpt(PASID), 7)).toBe("EINVAL");
  });

  it("cannot reach what the host has not mapped, nor have its tables there", () => {
    const { table } = attached();
    guest.map(table, ADDRESS + PAGE, 0x1_0000_0000);
    guest.map(table, ADDRESS + 2 * PAGE, 0x1000);
    expect(guest.dma(ADDRESS + PAGE, TEXT)).toBe("fault");
    expect(guest.dma(ADDRESS + 2 * PAGE, TEXT)).toBe("fault");
    const outside = guest.nested(viommu, guest.entry(0x9000_0000));
    expect(attach(outside)).toBe(outside);
    expect(guest.dma(ADDRESS, TEXT)).toBe("fault");
    const rootOutside = guest.nested(viommu, guest.entry(guest.gcr3([0x9000_0000])));
    expect(attach(rootOutside)).toBe(rootOutside);
    expect(guest.dma(ADDRESS, TEXT)).toBe("fault");
  });

  it("loses what the host unmaps, at once", () => {
    const { page } = attached();
    expect(guest.dma(ADDRESS, TEXT)).toBe("done");
    unmapAll();
    guest.write(page, new Uint8Array(TEXT.length));
    expect(guest.dma(ADDRESS, TEXT)).toBe("fault");
    expect(guest.text(page, 1)).toBe("\0");
  });

  it("that is not valid passes guest addresses, one without translation nothing, one without tables what IR and IW say", () => {
    start();
    const page = guest.page();
    const reached = (entry: DteFields): unknown => {
      const nested = guest.nested(viommu, entry);
      expect(attach(nested)).toBe(nested);
      return guest.dma(page, TEXT);
    };
    expect(reached({})).toBe("done");
    expect(guest.text(page, TEXT.length)).toBe(TEXT);
    expect(guest.dma(0x1000, TEXT)).toBe("fault");
    expect(reached({ V: true })).toBe("fault");
    expect(reached({ V: true, TV: true, IR: true, IW: true })).toBe("done");
    expect(reached({ V: true, TV: true, IR: true })).toBe("fault");
  });

  it("may say of interrupts and other things what it likes", () => {
    attached({ IV: true, INT_TAB_LEN: 9, INT_TRP: 0x1_0000, INT_CTL: 2, SE: true, SYSMGT: 3, EX: true });
    expect(guest.dma(ADDRESS, TEXT)).toBe("done");
  });

  const refusals: readonly [what: string, entry: DteFields, code: string][] = [
    ["a host mode", { MODE: 1 }, "EINVAL"],
    ["a host table", { HOST_TRP: 0x1000 }, "EINVAL"],
    ["GCR3 tables of 4 levels", { GLX: 3 }, "EINVAL"],
    ["a guest paging mode of its own", { GUEST_PAGING_MODE: 2 }, "EINVAL"],
    ["no GCR3 table", { GCR3_TRP_14: 0, GCR3_TRP_30: 0, GCR3_TRP_51: 0 }, "EINVAL"],
    ["guest tables of 5 levels, which the unit has not", { GUEST_PAGING_MODE: 1 }, "EOPNOTSUPP"],
  ];
  it.each(refusals)("with %s is refused", (_what, entry, code) => {
    start();
    expect(outcome(() => guest.nested(viommu, guest.entry(0x9000, entry)))).toBe(code);
    expect(outcome(() => typeof guest.nested(viommu, guest.entry(0x9000)))).toBe("number");
  });

  it("may have tables of 5 levels where the unit has them, and GCR3 tables of no more levels than the unit's", () => {
    const unit = "  - model: amdvi\n    guest-levels: 5\n    pasid-bits: 16\n";
    start(
      `${FAITHFUL.replace("  - model: amdvi\n", unit).replace(/ {4}pasid-bits: 20.*\n/, "")}extensions: [amd-nesting]\n`,
    );
    expect(outcome(() => typeof guest.nested(viommu, guest.entry(0x9000, { GUEST_PAGING_MODE: 1 })))).toBe(
      "number",
    );
    expect(outcome(() => guest.nested(viommu, guest.entry(0x9000, { GLX: 2 })))).toBe("EOPNOTSUPP");
  });

  it("is of one kind and size, on a vIOMMU, and can be read", () => {
    start();
    const entry = guest.entry(0x9000);
    expect(outcome(() => guest.nested(viommu, entry, { type: 2 }))).toBe("EOPNOTSUPP");
    expect(outcome(() => guest.nested(parent, entry))).toBe("EOPNOTSUPP");
    expect(outcome(() => guest.nested(hwpt(0), entry))).toBe("EOPNOTSUPP");
  });

  it("keeps its vIOMMU, and that its nest parent, and beside PASIDs of the host's it has no place", () => {
    start();
    const nested = guest.nested(viommu, guest.entry(guest.gcr3([guest.page()])));
    expect(outcome(() => guest.client.destroy(guest.fd, viommu))).toBe("EBUSY");
    const own = hwpt(PASID);
    attach(own);
    attach(own, 3);
    expect(attach(nested)).toBe("EINVAL");
    guest.client.detachFrom(guest.device, 3);
    expect(attach(nested)).toBe(nested);
    expect(attach(own, 3)).toBe("EINVAL");
    expect(outcome(() => guest.client.destroy(guest.fd, nested))).toBe("EBUSY");
  });

  it("makes writes show as dirty in the nest parent, in guest addresses", () => {
    guest = new AmdGuest();
    parent = hwpt(NEST | DIRTY);
    viommu = guest.viommu(parent);
    const [table, page] = [guest.page(), guest.page()];
    guest.map(table, ADDRESS, page);
    attach(guest.nested(viommu, guest.entry(guest.gcr3([table]))));
    expect(guest.dma(ADDRESS, TEXT)).toBe("done");
    const flags = uapi.IOMMU_HWPT_DIRTY_TRACKING_ENABLE;
    const members = { flags, hwpt_id: parent };
    guest.call(uapi.IOMMU_HWPT_SET_DIRTY_TRACKING, uapi.IommuHwptSetDirtyTracking, members);
    const dirty = (): boolean => {
      guest.task.memory.write(BigInt(SCRATCH), new Uint8Array(32));
      guest.call(uapi.IOMMU_HWPT_GET_DIRTY_BITMAP, uapi.IommuHwptGetDirtyBitmap, {
        ...{ hwpt_id: parent, iova: BigInt(page), length: BigInt(PAGE), page_size: BigInt(PAGE) },
        data: BigInt(SCRATCH),
      });
      const bytes = new Uint8Array(1);
      guest.task.memory.read(BigInt(SCRATCH), bytes);
      return bytes[0] === 1;
    };
    dirty();
    expect(dirty()).toBe(false);
    expect(guest.dma(ADDRESS, TEXT)).toBe("done");
    expect([dirty(), dirty()]).toEqual([true, false]);
    expect(guest.dma(ADDRESS, TEXT)).toBe("done");
    expect(dirty()).toBe(true);
  });
});

const pages = (fields: Parameters<typeof InvalidatePages.make>[0] = {}): bigint =>
  InvalidatePages.make({ OPCODE: Opcode.INVALIDATE_IOMMU_PAGES, DOMAIN, GN: true, PDE: true, ...fields });
const iotlb = (fields: Parameters<typeof InvalidateIotlb.make>[0] = {}): bigint =>
  InvalidateIotlb.make({ OPCODE: Opcode.INVALIDATE_IOTLB_PAGES, DEVICE: VIRTUAL_ID, ...fields });
/** With S: everything. */
const EVERY_ADDRESS = 0x7fff_ffff_ffff_f000n;

describe("the guest's commands", () => {
  it("make changes of its tables good", () => {
    const { table, page } = attached();
    const moved = guest.page();
    const commands = [
      pages({ S: true, ADDRESS: EVERY_ADDRESS }),
      pages({ ADDRESS: BigInt(ADDRESS) }),
      pages({ ADDRESS: BigInt(ADDRESS) | 0x1000n, S: true, PDE: false }),
    ];
    commands.forEach((command, index) => {
      const [now, next] = index % 2 === 0 ? [page, moved] : [moved, page];
      expect(guest.dma(ADDRESS, "a")).toBe("done");
      guest.map(table, ADDRESS, next);
      expect(guest.dma(ADDRESS, `${index}`)).toBe("done");
      expect(guest.text(now, 1), "the unit remembers").toBe(`${index}`);
      expect(guest.invalidate(viommu, [command])).toEqual({ done: 1, error: undefined });
      expect(guest.dma(ADDRESS, TEXT)).toBe("done");
      expect(guest.text(next, TEXT.length)).toBe(TEXT);
    });
  });

  it("of domains that the guest's devices have not change nothing", () => {
    const { table, page } = attached();
    expect(guest.dma(ADDRESS, TEXT)).toBe("done");
    guest.map(table, ADDRESS, guest.page());
    const other = pages({ DOMAIN: DOMAIN + 1, S: true, ADDRESS: EVERY_ADDRESS });
    expect(guest.invalidate(viommu, [other])).toEqual({ done: 1, error: undefined });
    expect(guest.dma(ADDRESS, "still")).toBe("done");
    expect(guest.text(page, 5)).toBe("still");
  });

  it("are carried out up to the first that is not the guest's to give: EINVAL, with the count", () => {
    attached();
    const good = pages();
    const bad = [
      pages({ GN: false }),
      pages() | (1n << 20n), // reserved
      iotlb({ DEVICE: VIRTUAL_ID + 1n }),
      iotlb() | (1n << 65n),
      DeviceCommand.make({ OPCODE: Opcode.INVALIDATE_DEVTAB_ENTRY, DEVICE: VIRTUAL_ID }),
      DeviceCommand.make({ OPCODE: Opcode.INVALIDATE_INTERRUPT_TABLE, DEVICE: VIRTUAL_ID }),
      InvalidateAll.make({ OPCODE: Opcode.INVALIDATE_IOMMU_ALL }),
      CompletionWait.make({ OPCODE: Opcode.COMPLETION_WAIT, S: true, ADDRESS: 0x1000 }),
      CompletionWait.make({ OPCODE: Opcode.COMPLETE_PPR_REQUEST }),
      0n,
      0xfn << 60n,
    ];
    for (const command of bad)
      expect(guest.invalidate(viommu, [good, good, command, good]), command.toString(16)).toEqual({
        done: 2,
        error: "EINVAL",
      });
    const many = Array.from({ length: 600 }, () => good);
    expect(guest.invalidate(viommu, many)).toEqual({ done: 600, error: undefined });
  });

  it("of another kind, or that cannot be read, are not begun; nor are they for a page table", () => {
    const { nested } = attached();
    expect(guest.invalidate(viommu, [pages()], { type: 1 })).toEqual({ done: 0, error: "EINVAL" });
    expect(guest.invalidate(viommu, [pages(), pages()], { at: 0x1f_fff0 })).toEqual({
      done: 0,
      error: "EFAULT",
    });
    expect(guest.invalidate(nested, [pages()])).toEqual({ done: 0, error: "EOPNOTSUPP" });
    expect(guest.invalidate(parent, [pages()])).toEqual({ done: 0, error: "EINVAL" });
  });

  it("reach the guest's translations only: another guest's with the same domain id are as they were", () => {
    const { table, page } = attached();
    const other = guest.viommu(hwpt(NEST));
    const same = guest.nested(other, guest.entry(guest.gcr3([guest.page()])));
    expect(guest.dma(ADDRESS, TEXT)).toBe("done");
    guest.map(table, ADDRESS, guest.page());
    const everything = pages({ S: true, ADDRESS: EVERY_ADDRESS });
    expect(guest.invalidate(other, [everything])).toEqual({ done: 1, error: undefined });
    expect(guest.invalidate(other, [iotlb()])).toEqual({ done: 0, error: "EINVAL" });
    expect(guest.dma(ADDRESS, "still")).toBe("done");
    expect(guest.text(page, 5)).toBe("still");
    guest.client.destroy(guest.fd, same);
  });
});

describe("translations that the guest's function keeps", () => {
  it("are the guest's to switch on, and go by its INVALIDATE_IOTLB_PAGES or by what the host unmaps", () => {
    const { table, page } = attached({ I: true });
    expect(guest.ats).toBe(true);
    const moved = guest.page();
    expect(guest.dma(ADDRESS, "a")).toBe("done");
    guest.map(table, ADDRESS, moved);
    expect(guest.invalidate(viommu, [pages()]).done).toBe(1);
    expect(guest.dma(ADDRESS, "b")).toBe("done");
    expect(guest.text(page, 1), "the function remembers").toBe("b");
    expect(guest.invalidate(viommu, [iotlb({ ADDRESS: BigInt(ADDRESS) })])).toEqual({
      done: 1,
      error: undefined,
    });
    expect(guest.dma(ADDRESS, "c")).toBe("done");
    expect(guest.text(moved, 1)).toBe("c");
    unmapAll();
    expect(guest.dma(ADDRESS, "d")).toBe("fault");
    attach(guest.nested(viommu, guest.entry(MEMORY.ipa)));
    expect(guest.ats).toBe(false);
    expect(guest.invalidate(viommu, [iotlb()])).toEqual({ done: 1, error: undefined });
  });

  it("of PASIDs go with what the host unmaps, and with the guest's entry", () => {
    const { gcr3, table, page } = attached({ I: true });
    guest.gcr3Entry(gcr3, 9, table);
    expect(guest.dma(ADDRESS, "a", 9)).toBe("done");
    const other = guest.nested(viommu, guest.entry(guest.gcr3([guest.page()]), { I: true, DOMAIN: 9 }));
    expect(attach(other)).toBe(other);
    expect(guest.dma(ADDRESS, "b", 9)).toBe("fault");
    expect(guest.text(page, 1)).toBe("a");
  });

  it("are pages to ask for where the guest's entry lets them, and wait in the fault queue", () => {
    const { table, gcr3, faults: queue } = asking();
    guest.gcr3Entry(gcr3, 4, table);
    expect(guest.dma(ADDRESS + PAGE, TEXT, 4)).toBe("waits");
    const [fault, ...more] = guest.takeFaults(queue.fd);
    expect(more).toEqual([]);
    expect(fault).toMatchObject({ dev_id: guest.id, pasid: 4, addr: BigInt(ADDRESS + PAGE), perm: 2 });
    const page = guest.page();
    guest.map(table, ADDRESS + PAGE, page);
    guest.answerFault(queue.fd, fault!.cookie, uapi.IOMMUFD_PAGE_RESP_SUCCESS);
    expect(guest.dmaState()).toBe("done");
    expect(guest.text(page, TEXT.length)).toBe(TEXT);
    const quiet = guest.nested(viommu, guest.entry(gcr3, { I: true }), { fault: queue.id });
    expect(attach(quiet)).toBe(quiet);
    expect(guest.dma(0x55_5000, TEXT, 4)).toBe("fault");
    expect(guest.takeFaults(queue.fd)).toEqual([]);
  });
});

/** A guest's table whose function may ask for pages, attached. */
const asking = () => {
  start();
  const faults = guest.faultQueue();
  guest.vdevice(viommu, VIRTUAL_ID);
  const table = guest.page();
  guest.map(table, ADDRESS, guest.page());
  const gcr3 = guest.gcr3([table]);
  const entry = guest.entry(gcr3, { I: true, PPR: true, GPRP: true });
  const nested = guest.nested(viommu, entry, { fault: faults.id });
  expect(attach(nested)).toBe(nested);
  return { table, gcr3, faults };
};

it("a page table belongs to one unit, and so do a guest's functions and page tables; an address space has one for each", () => {
  const units = FAITHFUL.replace("devices:\n", "  - model: amdvi\n    name: ivhd1\ndevices:\n");
  const text = `${units}  - model: test\n    at: 0000:09:00.0\n    unit: ivhd1\nextensions: [amd-nesting]\n`;
  start(text);
  const other = guest.client.cdev([...guest.machine.core.devices.keys()].indexOf("0000:09:00.0"));
  const id = guest.client.bind(other, guest.fd);
  const attachOther = (pt: number): unknown => outcome(() => guest.client.attachTo(other, pt));
  const there = guest.client.hwpt(guest.fd, id, guest.ioas, NEST);
  expect([attach(there), attachOther(parent)]).toEqual(["EINVAL", "EINVAL"]);
  const members = { type: 1, dev_id: guest.id, hwpt_id: there };
  expect(outcome(() => guest.call(uapi.IOMMU_VIOMMU_ALLOC, uapi.IommuViommuAlloc, members))).toBe("EINVAL");
  const device = { viommu_id: viommu, dev_id: id, virt_id: 1n };
  expect(outcome(() => guest.call(uapi.IOMMU_VDEVICE_ALLOC, uapi.IommuVdeviceAlloc, device))).toBe("EINVAL");
  const nested = guest.nested(viommu, {});
  expect([attachOther(nested), attach(nested)]).toEqual(["EINVAL", nested]);
  expect([attach(guest.ioas), typeof attachOther(guest.ioas)]).toEqual([expect.any(Number), "number"]);
});
