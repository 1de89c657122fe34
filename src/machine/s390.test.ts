/** The s390 host through encoded requests: guests' anchors above nest parents, what they cost, and how they lose memory. */
import { afterEach, describe, expect, it } from "vitest";
import { MEMORY, PAGE } from "../../test/support/nested-guest.ts";
import { PLAIN, S390Guest } from "../../test/support/s390-guest.ts";
import { outcome } from "../../test/support/vfio-client.ts";
import { Access, Transaction, TranslateStatus } from "../hardware/unit.ts";
import * as uapi from "../uapi/iommufd.ts";

const ADDRESS = 0x1_0000_0000;
const TEXT = "what the function wrote";

let guest: S390Guest;
afterEach(() => guest.close());

/** A guest's page at ADDRESS, whose anchor the function has. */
const attached = (made = new S390Guest()) => {
  guest = made;
  const parent = guest.nestParent();
  const root = guest.table();
  const page = guest.page();
  guest.map(root, ADDRESS, page);
  const hwpt = guest.nested(parent, guest.anchor(root));
  guest.client.attachTo(guest.device, hwpt);
  return { parent, root, page, hwpt };
};

describe("a guest's anchor above a nest parent", () => {
  it("leads the function where the guest's tables say, at once when it is made, later when refreshed", () => {
    const { root, page, hwpt } = attached();
    expect(guest.dma(ADDRESS + 0x10, TEXT)).toBe("done");
    expect(guest.text(page + 0x10, TEXT.length)).toBe(TEXT);
    const other = guest.page();
    guest.map(root, ADDRESS, other);
    expect(guest.dma(ADDRESS, "to the first page")).toBe("done");
    expect(guest.text(page, 17)).toBe("to the first page");
    expect(guest.refresh(hwpt, [ADDRESS, PAGE])).toEqual({ done: 1, error: undefined });
    expect(guest.dma(ADDRESS, TEXT)).toBe("done");
    expect(guest.text(other, TEXT.length)).toBe(TEXT);
    guest.client.detachFrom(guest.device);
    expect(guest.dma(ADDRESS, TEXT)).toBe("fault");
  });

  it("stops at the first range that names what the parent does not map, with how many were taken before", () => {
    const { root, hwpt } = attached();
    guest.map(root, ADDRESS + PAGE, MEMORY.ipa + MEMORY.bytes);
    const ranges = [
      [ADDRESS, PAGE],
      [ADDRESS, 2 * PAGE],
      [0, PAGE],
    ] as const;
    expect(guest.refresh(hwpt, ...ranges)).toEqual({ done: 1, error: "EFAULT" });
    expect([guest.dma(ADDRESS, TEXT), guest.dma(ADDRESS + PAGE, TEXT)]).toEqual(["done", "fault"]);
    expect(guest.refresh(hwpt, [0x800, PAGE])).toEqual({ done: 0, error: "EINVAL" });
  });

  it("takes no pin, no accounting and no memory of the caller's, whatever the guest maps and refreshes", () => {
    const { root, hwpt } = attached();
    const { memory } = guest.task;
    const counts = () => {
      const { tableFrames: _tables, ...live } = guest.machine.live();
      return { live, pinned: memory.pinnedPages, locked: memory.lockedPages };
    };
    const before = counts();
    expect(before.pinned).toBe(MEMORY.bytes / PAGE);
    for (let page = 0; page < 256; page++)
      guest.map(root, ADDRESS + page * PAGE, MEMORY.ipa + (page % (MEMORY.bytes / PAGE)) * PAGE);
    const frames = guest.machine.live()["tableFrames"];
    expect(guest.refresh(hwpt, [ADDRESS, 256 * PAGE])).toEqual({ done: 1, error: undefined });
    expect(counts()).toEqual(before);
    expect(guest.machine.live()["tableFrames"]).toBe(frames);
    const again = guest.nested(guest.nestParent(), guest.anchor(root));
    expect(counts().pinned).toBe(before.pinned);
    guest.client.destroy(guest.fd, again);
  });

  it("is EOPNOTSUPP without the extension, as any nest parent is", () => {
    guest = new S390Guest(PLAIN);
    expect(outcome(() => guest.nestParent())).toBe("EOPNOTSUPP");
    const plain = guest.client.hwpt(guest.fd, guest.id, guest.ioas);
    expect(outcome(() => guest.nested(plain, guest.anchor(guest.table())))).toBe("EINVAL");
  });

  it("takes its own data and no flags, and invalidations of its own type", () => {
    const { parent, root, hwpt } = attached();
    expect(outcome(() => guest.nested(parent, guest.anchor(root), { type: 2 }))).toBe("EOPNOTSUPP");
    const { IOMMU_HWPT_ALLOC_PASID: flags } = uapi;
    expect(outcome(() => guest.nested(parent, guest.anchor(root), { flags }))).toBe("EOPNOTSUPP");
    expect(outcome(() => guest.nested(parent, 0n))).toBe("EINVAL");
    expect(outcome(() => guest.nested(parent, guest.anchor(0x1000)))).toBe("EFAULT");
    const wrong = { hwpt_id: hwpt, data_type: 1, entry_len: 24, entry_num: 1, data_uptr: 0x10_0000n };
    expect(outcome(() => guest.call(uapi.IOMMU_HWPT_INVALIDATE, uapi.IommuHwptInvalidate, wrong))).toBe(
      "EINVAL",
    );
  });
});

describe("memory that the VMM unmaps under a function that uses it", () => {
  /** What the function's unit says of an access whenever the kernel gives a page of the program's back. */
  const prying = (reach: () => number | "fault") => {
    const { memory } = guest.task;
    const pin = memory.pin.bind(memory);
    const reached: (number | "fault")[] = [];
    memory.pin = (...range) => {
      const made = pin(...range);
      return {
        ...made,
        unpin(first, count) {
          reached.push(reach());
          made.unpin(first, count);
        },
      };
    };
    return reached;
  };

  it.each([
    ["the page itself", "page"],
    ["the guest's page table", "table"],
    ["all of it", "all"],
  ] as const)("%s: what led there has gone, and was flushed, before a page is unpinned", (_, what) => {
    guest = new S390Guest();
    const { unit } = [...guest.machine.units.values()][0]!;
    const { rid } = guest.machine.functions.find(({ name }) => name === "0000:05:00.0")!;
    const reach = () => {
      const transaction = Object.assign(new Transaction(), { rid, hi: 1, access: Access.write });
      return unit.translate(transaction) === TranslateStatus.ok ? transaction.pa : "fault";
    };
    const reached = prying(reach);
    // Mapped page by page, so that one can go.
    guest.unmap(MEMORY.ipa, MEMORY.bytes);
    for (let at = 0; at < MEMORY.bytes; at += PAGE)
      guest.client.mapAt(guest.fd, guest.ioas, MEMORY.ipa + at, MEMORY.va + at, PAGE);
    const { root, page } = attached(guest);
    // Live: the function has used the page, and its unit remembers it.
    expect(guest.dma(ADDRESS, TEXT)).toBe("done");
    expect(reach()).toBe(guest.task.memory.physical(MEMORY.va + page - MEMORY.ipa));
    const gone = { page, table: guest.place(root, ADDRESS) & -PAGE, all: MEMORY.ipa }[what];
    guest.unmap(gone, what === "all" ? MEMORY.bytes : PAGE);
    expect(reached.length).toBeGreaterThan(0);
    expect(new Set(reached)).toEqual(new Set(["fault"]));
    expect(guest.dma(ADDRESS, TEXT)).toBe("fault");
  });
});
