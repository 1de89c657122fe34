/**
 * Nesting containers on VT-d, as programs use them: what is offered where, the capability within every argsz, PASIDs of
 * address spaces, guests' tables bound and unbound, and every errno. DMA passes the silicon.
 */
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import {
  FIRST,
  NESTING,
  type NestingClient,
  NestingRig,
  PAGE,
  ROOT,
  SECOND,
  type Setup,
  VA,
  withoutMdevs,
} from "../../../test/support/nesting-client.ts";
import { outcome, reasonOf } from "../../../test/support/vfio-client.ts";
import { VFIO_IOMMU_GET_INFO } from "../../uapi/vfio.ts";
import * as vsva from "../../uapi/vsva.ts";

const { VFIO_IOMMU_FLAG_ALLOC_PASID: ALLOC, VFIO_IOMMU_FLAG_FREE_PASID: FREE } = vsva;
const { VFIO_IOMMU_NESTING_OP_BIND_PGTBL: BIND, VFIO_IOMMU_NESTING_OP_CACHE_INVLD: INVALIDATE } = vsva;

let rig: NestingRig;
let clients: NestingClient[];
let client: NestingClient;

const begin = (edit?: (text: string) => string): void => {
  rig = new NestingRig(edit);
  clients = [];
  client = newClient();
};
const newClient = (...options: Parameters<NestingRig["client"]>): NestingClient => {
  const made = rig.client(...options);
  clients.push(made);
  return made;
};
const end = (): void => {
  for (const each of clients) each.task.exit();
  expect(rig.left()).toEqual([]);
  rig.machine.close();
};
const errno = (work: () => unknown): unknown => outcome(work);

beforeEach(() => begin());
afterEach(() => end());

/** A machine of these units and functions. */
const machineOf = (units: readonly string[], devices: readonly string[], more = ""): (() => string) => {
  const list = (items: readonly string[]): string => items.map((item) => `  - ${item}\n`).join("");
  return () => `name: own\n${more}units:\n${list(units)}devices:\n${list(devices)}`;
};
const VSVA = "extensions: [vsva2020]\n";
const TEST = `{model: test, at: "${FIRST}"}`;
const again = (edit: (text: string) => string): void => {
  end();
  begin(edit);
};

describe("the nesting type", () => {
  it("is offered with the extension alone; without it SET_IOMMU is EINVAL, as in Linux 7.2", () => {
    expect(client.extension(client.container(), NESTING)).toBe(1);
    again((text) => withoutMdevs(text).replace("extensions: [vsva2020]", "extensions: []"));
    expect(client.extension(client.container(), NESTING)).toBe(0);
    expect(errno(() => client.setUp(FIRST))).toBe("EINVAL");
  });

  it("fails where the unit has no second stage to give: legacy mode, or scalable mode that does not nest", () => {
    for (const unit of [
      "{model: vtd}",
      "{model: vtd, mode: scalable, stages: [first]}",
      "{model: vtd, mode: scalable, stages: [first, second]}",
    ]) {
      again(machineOf([unit], [TEST], VSVA));
      expect(client.extension(client.container(), NESTING), unit).toBe(0);
      expect(
        errno(() => client.setUp(FIRST)),
        unit,
      ).toBe("EOPNOTSUPP");
      for (const fd of client.task.descriptors) client.task.close(fd);
      expect(
        errno(() => client.attach(rig.groupOf(FIRST), 3)),
        unit,
      ).not.toBe("EOPNOTSUPP");
    }
  });

  it("fails with ENOENT where the unit's format of tables is not known, and the group stays free for another type", () => {
    again(machineOf(["{model: smmuv3, nesting-information: empty}"], [TEST], VSVA));
    const container = client.container();
    const group = client.group(rig.groupOf(FIRST));
    client.setContainer(group, container);
    expect(errno(() => client.setIommu(container, NESTING))).toBe("ENOENT");
    expect(client.setIommu(container, 3)).toBe(0);
  });

  it.each([
    ["CAP.FL5LP", "address-widths: [48, 57]"],
    ["CAP.FL1GP", "large-pages: [2M]"],
    ["ECAP.PRS", "page-requests: false"],
    ["ECAP.ERS", "execute-requests: true"],
    ["ECAP.SRS", "supervisor-requests: false"],
    ["ECAP.EAFS", "extended-accessed: false"],
    ["ECAP.PASID", "pasid-bits: 0"],
    ["ECAP.NEST", "stages: [first, second]"],
  ])(
    "is off on the whole machine where another unit differs in %s, though no device is behind it",
    (bit, setting) => {
      const one = "{model: vtd, name: dmar0, mode: scalable}";
      again(machineOf([one, `{model: vtd, name: dmar1, mode: scalable, ${setting}}`], [TEST], VSVA));
      expect(client.extension(client.container(), NESTING)).toBe(0);
      expect(errno(() => client.setUp(FIRST))).toBe("EOPNOTSUPP");
      const container = client.container();
      const reason = reasonOf(() => {
        for (const fd of client.task.descriptors) if (fd !== container) client.task.close(fd);
        client.setContainer(client.group(rig.groupOf(FIRST)), container);
        client.setIommu(container, NESTING);
      });
      expect(reason).toContain(bit);
      expect(reason).toContain("dmar1");
    },
  );

  it("is not disturbed by units that differ in other bits", () => {
    const one = "{model: vtd, name: dmar0, mode: scalable}";
    const other = "{model: vtd, name: dmar1, mode: scalable, dirty-tracking: false, pasid-bits: 16}";
    again(machineOf([one, other], [TEST], VSVA));
    const { container } = client.setUp(FIRST);
    expect(client.nestingInfo(container).pasid_bits).toBe(16);
  });

  it("takes one group: a second is EINVAL before and after SET_IOMMU, and nothing has changed", () => {
    const { container } = client.setUp(FIRST);
    const second = client.group(rig.groupOf(SECOND));
    expect(errno(() => client.setContainer(second, container))).toBe("EINVAL");
    const both = client.container();
    client.setContainer(second, both);
    const third = client.group(0);
    client.setContainer(third, both);
    expect(errno(() => client.setIommu(both, NESTING))).toBe("EINVAL");
    client.unsetContainer(third);
    expect(client.setIommu(both, NESTING)).toBe(0);
  });
});

describe("GET_INFO", () => {
  it("has the nesting capability in place of the mappings left, and the PASIDs of the caller", () => {
    const { container } = client.setUp(FIRST);
    expect(client.info(container).ids).toEqual([2, 3, 0x8001, 1]);
    expect(client.info(container).ranges[0]).toEqual({ start: 0n, end: 0xfedf_ffffn });
    const { vendor, padding, ...info } = client.nestingInfo(container);
    expect(info).toEqual({
      argsz: 64,
      flags: 0,
      format: vsva.IOMMU_PASID_FORMAT_INTEL_VTD,
      features: 15,
      addr_width: 48,
      pasid_bits: 20,
    });
    expect(padding).toEqual(new Array(12).fill(0));
    const { cap_reg, ecap_reg } = vendor.vtd;
    expect(cap_reg).toBe(1n << 56n); // FL1GP; no FL5LP
    expect(ecap_reg).toBe((1n << 29n) | (1n << 31n) | (1n << 34n) | (1n << 40n)); // PRS, SRS, EAFS, PASID; no ERS
    expect(client.quota(container)).toEqual([1000, 1000]);
    client.allocate(container);
    expect(client.quota(container)).toEqual([1000, 999]);
  });

  it("has the mappings left, and no word of nesting, in a container of another type", () => {
    const { container } = client.setUp(FIRST, 3);
    expect(client.info(container).ids).toEqual([2, 3, 1]);
    expect(client.info(container).available).toBe(65534);
  });

  it("five levels show in the address width", () => {
    again((text) => text.replace("address-widths: [39, 48]", "address-widths: [48, 57]"));
    const { container } = client.setUp(FIRST);
    expect(client.nestingInfo(container).addr_width).toBe(57);
    expect(client.nestingInfo(container).vendor.vtd.cap_reg).toBe((1n << 56n) | (1n << 60n));
  });

  it("writes within the caller's argsz whatever that is, and below the size says the size that is wanted", () => {
    const { container } = client.setUp(FIRST);
    const wanted = new DataView(client.rawInfo(container, 24).buffer).getUint32(0, true);
    expect(wanted).toBe(24 + 32 + 72 + 16 + 48);
    const whole = client.rawInfo(container, wanted);
    for (let argsz = 0; argsz <= wanted + 40; argsz++) {
      if (argsz < 16) {
        expect(
          errno(() => client.rawInfo(container, argsz)),
          `argsz ${argsz}`,
        ).toBe("EINVAL");
        continue;
      }
      const bytes = client.rawInfo(container, argsz);
      const fits = argsz >= wanted;
      const view = new DataView(bytes.buffer);
      expect(view.getUint32(0, true), `argsz ${argsz}`).toBe(fits ? argsz : wanted);
      const end = fits ? wanted : Math.min(argsz, 24);
      expect(
        bytes.subarray(end).every((byte) => byte === 0xa5),
        `argsz ${argsz}`,
      ).toBe(true);
      if (fits) expect(bytes.subarray(4, wanted)).toEqual(whole.subarray(4, wanted));
      else if (argsz >= 20) expect(view.getUint32(16, true)).toBe(0);
    }
    expect(errno(() => client.task.ioctl(container, VFIO_IOMMU_GET_INFO, 8n))).toBe("EFAULT");
  });
});

describe("PASID_REQUEST", () => {
  let s: Setup;
  beforeEach(() => {
    s = client.setUp(FIRST);
  });
  const request = (flags: number, min: number, max: number, argsz?: number): unknown =>
    errno(() => client.pasidRequest(s.container, flags, min, max, argsz));

  it("gives one in the range, by the call's value; min = max gives exactly that one", () => {
    expect(request(ALLOC, 100, 200)).toBe(100);
    expect(request(ALLOC, 100, 200)).toBe(101);
    expect(request(ALLOC, 150, 150)).toBe(150);
    expect(request(ALLOC, 150, 150)).toBe("ENOSPC");
    expect(request(ALLOC, 2 ** 20 - 1, 2 ** 31 - 1)).toBe(2 ** 20 - 1);
    expect(request(FREE, 101, 150)).toBe(0);
    expect(request(ALLOC, 100, 200)).toBe(101);
    expect(client.quota(s.container)).toEqual([1000, 997]);
  });

  it.each<[string, number, number, number, number?]>([
    ["min above max", ALLOC, 2, 1],
    ["min above max, to free", FREE, 2, 1],
    ["max of 32 bits", ALLOC, 1, 2 ** 31],
    ["max of 32 bits, to free", FREE, 1, 2 ** 32 - 1],
    ["no flag", 0, 1, 2],
    ["both flags", ALLOC | FREE, 1, 2],
    ["an unknown flag", 4, 1, 2],
    ["an unknown flag beside a known one", ALLOC | 0x8000_0000, 1, 2],
    ["argsz too small", ALLOC, 1, 2, 15],
    ["argsz 0", ALLOC, 1, 2, 0],
  ])("%s: EINVAL, and no PASID is taken", (_what, flags, min, max, argsz) => {
    expect(request(flags, min, max, argsz)).toBe("EINVAL");
    expect(rig.machine.pasids.ofUsers).toBe(0);
  });

  it("ENOSPC: range exhausted, above the unit's bits, beyond the quota", () => {
    expect(request(ALLOC, 7, 7)).toBe(7);
    expect(request(ALLOC, 7, 7)).toBe("ENOSPC");
    expect(request(ALLOC, 2 ** 20, 2 ** 20)).toBe("ENOSPC");
    rig.machine.pasids.quota = 1;
    expect(request(ALLOC, 1, 100)).toBe("ENOSPC");
  });

  it("EFAULT where the argument cannot be read, whatever is in it", () => {
    for (const at of [8n, 2n ** 64n - 8n])
      expect(errno(() => client.task.ioctl(s.container, vsva.VFIO_IOMMU_PASID_REQUEST, at))).toBe("EFAULT");
  });

  it("EOPNOTSUPP on a unit without PASIDs; the capability has no features", () => {
    again((text) => withoutMdevs(text).replace("mode: scalable ", "mode: scalable\n    pasid-bits: 0 "));
    s = client.setUp(FIRST);
    expect(client.nestingInfo(s.container)).toMatchObject({ features: 0, pasid_bits: 0 });
    expect(request(ALLOC, 1, 2)).toBe("EOPNOTSUPP");
    expect(request(FREE, 1, 2)).toBe("EOPNOTSUPP");
    expect(request(FREE, 2, 1)).toBe("EINVAL");
    expect(errno(() => client.bind(s.container, 1))).toBe("EOPNOTSUPP");
    expect(errno(() => client.unbind(s.container, 1))).toBe("EOPNOTSUPP");
    expect(errno(() => client.invalidate(s.container, { cache: 1 }))).toBe("EOPNOTSUPP");
  });

  it("is ENOTTY in a container of another type", () => {
    const { container } = client.setUp(SECOND, 3);
    expect(errno(() => client.allocate(container))).toBe("ENOTTY");
    expect(errno(() => client.bind(container, 1))).toBe("ENOTTY");
  });
});

describe("the PASIDs of an address space", () => {
  it("are shared by threads and containers, and by nobody else", () => {
    const one = client.setUp(FIRST);
    const two = client.setUp(SECOND);
    const pasid = client.allocate(one.container);
    const thread = newClient({ shares: client.task, tid: 99 });
    const other = newClient();
    for (const each of [one, two]) {
      client.task.pass(each.container, thread.task);
      client.task.pass(each.container, other.task);
    }
    const [mine, theirs] = [thread.task.descriptors[0]!, other.task.descriptors[0]!];
    client.writeTable(PAGE);
    expect(client.bind(two.container, pasid)).toBe(0);
    expect(thread.bind(mine, pasid)).toBe(0);
    expect(errno(() => other.bind(theirs, pasid))).toBe("EACCES");
    expect(errno(() => other.unbind(theirs, pasid))).toBe("EACCES");
    expect(errno(() => other.invalidatePage(theirs, pasid))).toBe("EACCES");
    expect(other.free(theirs, 1, 2 ** 31 - 1)).toBe(0); // which frees its own: none
    expect(rig.machine.pasids.ownerOf(pasid)).toBeDefined();
    const own = other.allocate(theirs);
    expect(own).not.toBe(pasid);
    expect(errno(() => client.bind(one.container, own))).toBe("EACCES");
    expect(reasonOf(() => client.bind(one.container, own))).toContain("another address space");
    expect(other.quota(theirs)).toEqual([1000, 999]);
    expect(thread.free(mine, pasid)).toBe(0);
    expect(client.read(two, VA, pasid)).toBe("fault");
  });

  it("go with the process though another has its container, and devices lose them", () => {
    const s = client.setUp(FIRST);
    const pasid = client.allocate(s.container);
    client.writeTable(PAGE);
    client.poke(PAGE, Uint8Array.of(77));
    client.bind(s.container, pasid);
    expect(client.read(s, VA, pasid)).toBe(77);
    const heir = newClient();
    const [container, device] = [
      client.task.pass(s.container, heir.task),
      client.task.pass(s.device, heir.task),
    ];
    client.task.pass(s.group, heir.task);
    client.task.exit();
    expect(rig.machine.pasids.ofUsers).toBe(0);
    expect(heir.read({ container, device, group: -1 }, VA, pasid)).toBe("fault");
    expect(heir.allocate(container, pasid, pasid)).toBe(pasid);
    expect(heir.bind(container, pasid)).toBe(0);
    expect(heir.read({ container, device, group: -1 }, VA, pasid)).toBe(77);
  });

  it("go with the last container of the process", () => {
    const [one, two] = [client.setUp(FIRST), client.setUp(SECOND)];
    const pasid = client.allocate(one.container);
    client.tearDown(one);
    expect(rig.machine.pasids.ofUsers).toBe(1);
    expect(client.bind(two.container, pasid)).toBe(0);
    client.tearDown(two);
    expect(rig.machine.pasids.ofUsers).toBe(0);
  });

  it("are free again after the table of one is bound in two containers, and freed through either", () => {
    const [one, two] = [client.setUp(FIRST), client.setUp(SECOND)];
    const pasid = client.allocate(one.container);
    client.writeTable(PAGE);
    client.poke(PAGE, Uint8Array.of(5));
    client.bind(one.container, pasid);
    client.bind(two.container, pasid);
    expect([client.read(one, VA, pasid), client.read(two, VA, pasid)]).toEqual([5, 5]);
    expect(client.free(two.container, pasid)).toBe(0);
    expect([client.read(one, VA, pasid), client.read(two, VA, pasid)]).toEqual(["fault", "fault"]);
    expect(errno(() => client.bind(one.container, pasid))).toBe("ENOENT");
    expect(errno(() => client.unbind(one.container, pasid))).toBe("ENOENT");
  });
});

describe("BIND_PGTBL and UNBIND_PGTBL", () => {
  let s: Setup;
  let pasid: number;
  beforeEach(() => {
    s = client.setUp(FIRST);
    pasid = client.allocate(s.container);
    client.writeTable(PAGE);
    client.poke(PAGE, Uint8Array.of(42));
  });
  const bind = (members = {}, number: number | bigint = pasid): unknown =>
    errno(() => client.bind(s.container, number, members));

  it("the device has the guest's table for the PASID, above the container's mappings, until it is unbound", () => {
    expect(client.read(s, PAGE)).toBe(42);
    expect(client.read(s, VA, pasid)).toBe("fault");
    expect(bind()).toBe(0);
    expect(client.read(s, VA, pasid)).toBe(42);
    expect(client.read(s, VA)).toBe("fault");
    expect(errno(() => client.unbind(s.container, pasid))).toBe(0);
    expect(client.read(s, VA, pasid)).toBe("fault");
  });

  it("every device of the group has it", () => {
    const pair = [FIRST, "0000:05:00.1"] as const;
    const devices = pair.map((at) => `{model: test, at: "${at}", group: pair}`);
    again(machineOf(["{model: vtd, mode: scalable}"], devices, VSVA));
    s = client.setUp(FIRST);
    const second = { ...s, device: client.device(s.group, pair[1]) };
    client.task.pwrite(second.device, (7n << 40n) + 4n, Uint8Array.of(6, 0));
    pasid = client.allocate(s.container);
    client.writeTable(PAGE);
    client.poke(PAGE, Uint8Array.of(42));
    expect(bind()).toBe(0);
    expect([client.read(s, VA, pasid), client.read(second, VA, pasid)]).toEqual([42, 42]);
    client.unbind(s.container, pasid);
    expect([client.read(s, VA, pasid), client.read(second, VA, pasid)]).toEqual(["fault", "fault"]);
  });

  it("is undone on all devices when one of the group cannot have the PASID", () => {
    const first = `{model: test, at: "${FIRST}", group: pair}`;
    const other = `{model: test, at: "0000:05:00.1", group: pair, pasid-bits: 4}`;
    again(machineOf(["{model: vtd, mode: scalable}"], [first, other], VSVA));
    s = client.setUp(FIRST);
    client.writeTable(PAGE);
    pasid = client.allocate(s.container, 16, 16);
    expect(bind()).toBe("EINVAL");
    expect(client.read(s, VA, pasid)).toBe("fault");
    expect(errno(() => client.unbind(s.container, pasid))).toBe("ENOENT");
    expect(client.allocate(s.container, 3, 3)).toBe(3);
    expect(bind({}, 3)).toBe(0);
  });

  it("EOPNOTSUPP where a device of the group has no PASIDs", () => {
    again(machineOf(["{model: vtd, mode: scalable}"], [`{model: bare, at: "${FIRST}"}`], VSVA));
    const { container } = client.attach(rig.groupOf(FIRST), NESTING);
    expect(errno(() => client.bind(container, client.allocate(container)))).toBe("EOPNOTSUPP");
    expect(reasonOf(() => client.bind(container, 1))).toContain("PASID");
  });

  it("whose PASID it is: EACCES, ENOENT, EINVAL", () => {
    expect(bind({}, pasid + 1)).toBe("ENOENT");
    expect(bind({}, 0)).toBe("ENOENT");
    expect(bind({}, 2 ** 20)).toBe("EINVAL");
    expect(bind({}, 2n ** 64n - 1n)).toBe("EINVAL");
    expect(bind({}, rig.machine.pasids.takeForHost())).toBe("EACCES");
  });

  it.each<[string, object, string]>([
    ["version 0", { version: 0 }, "EINVAL"],
    ["version 2", { version: 2 }, "EINVAL"],
    ["argsz of the data too small", { argsz: 71 }, "EINVAL"],
    ["another format", { format: 2 }, "EINVAL"],
    ["no format", { format: 0 }, "EINVAL"],
    ["an unknown flag", { flags: 2n }, "EINVAL"],
    ["padding", { padding: [0, 0, 0, 0, 0, 0, 0, 1] }, "EINVAL"],
    ["a guest PASID of 21 bits", { flags: 1n, gpasid: 2n ** 20n }, "EINVAL"],
    ["an address width of 47 bits", { addr_width: 47 }, "EINVAL"],
    ["an address width of 57 bits, which the unit has not", { addr_width: 57 }, "EINVAL"],
    ["a table that is not at a page", { gpgd: BigInt(ROOT + 8) }, "EINVAL"],
    ["a table above all guest addresses", { gpgd: 2n ** 48n }, "EINVAL"],
    ["an unknown vendor flag", { vendor: { vtd: { flags: 64n } } }, "EINVAL"],
    ["PCD", { vendor: { vtd: { flags: 4n } } }, "EOPNOTSUPP"],
    ["PWT", { vendor: { vtd: { flags: 8n } } }, "EOPNOTSUPP"],
    ["EMTE", { vendor: { vtd: { flags: 16n } } }, "EOPNOTSUPP"],
    ["CD", { vendor: { vtd: { flags: 32n } } }, "EOPNOTSUPP"],
  ])("%s is refused, and nothing is bound", (_what, members, code) => {
    expect(bind(members)).toBe(code);
    expect(reasonOf(() => client.bind(s.container, pasid, members)).length).toBeGreaterThan(8);
    expect(errno(() => client.unbind(s.container, pasid))).toBe("ENOENT");
    expect(bind()).toBe(0);
  });

  it("SRE and EAFE are taken where the unit has them, and EOPNOTSUPP elsewhere", () => {
    expect(bind({ vendor: { vtd: { flags: 3n } } })).toBe(0);
    again((text) =>
      text.replace(
        "mode: scalable ",
        "mode: scalable\n    supervisor-requests: false\n    extended-accessed: false ",
      ),
    );
    s = client.setUp(FIRST);
    pasid = client.allocate(s.container);
    for (const flags of [1n, 2n]) expect(bind({ vendor: { vtd: { flags } } })).toBe("EOPNOTSUPP");
  });

  it("the request itself: short argsz, unknown operations and bits are EINVAL, memory that ends EFAULT", () => {
    const data = client.bindData(pasid);
    for (const argsz of [0, 7, 8, 8 + 71])
      expect(
        errno(() => client.operate(s.container, BIND, data, argsz)),
        `argsz ${argsz}`,
      ).toBe("EINVAL");
    for (const flags of [3, 15, 19, 0xffff, 0x1_0000, 0x8000_0000])
      expect(
        errno(() => client.operate(s.container, flags, data)),
        `flags ${flags}`,
      ).toBe("EINVAL");
    expect(errno(() => client.task.ioctl(s.container, vsva.VFIO_IOMMU_NESTING_OP, 8n))).toBe("EFAULT");
    const end = 0x7fff_0000_0000 + 64 * PAGE; // where a modelled task's arguments end
    client.task.memory.write(BigInt(end - 8), new Uint8Array(new Uint32Array([80, BIND]).buffer));
    expect(errno(() => client.task.ioctl(s.container, vsva.VFIO_IOMMU_NESTING_OP, BigInt(end - 8)))).toBe(
      "EFAULT",
    );
    expect(client.operate(s.container, BIND, data, 8 + 72 + 100)).toBe(0);
  });

  it("a PASID has one table in a container: rebinding is EBUSY, a second unbind ENOENT", () => {
    expect([bind(), bind()]).toEqual([0, "EBUSY"]);
    expect(client.read(s, VA, pasid)).toBe(42);
    expect(errno(() => client.unbind(s.container, pasid))).toBe(0);
    expect(errno(() => client.unbind(s.container, pasid))).toBe("ENOENT");
    expect(bind()).toBe(0);
  });

  it("a guest's PASID names one table: EBUSY for a second, and it is free again after unbind", () => {
    const second = client.allocate(s.container);
    const named = { flags: 1n, gpasid: 77n };
    expect(bind(named)).toBe(0);
    expect(bind(named, second)).toBe("EBUSY");
    expect(bind({ gpasid: 77n }, second)).toBe(0); // without the flag it means nothing
    client.unbind(s.container, second);
    client.unbind(s.container, pasid);
    expect(bind(named, second)).toBe(0);
  });

  it("unbind looks at the format and the PASID, and its errors are those of bind", () => {
    bind();
    for (const [members, code] of [
      [{ version: 2 }, "EINVAL"],
      [{ format: 2 }, "EINVAL"],
      [{ argsz: 8 }, "EINVAL"],
    ] as const)
      expect(errno(() => client.unbind(s.container, pasid, members))).toBe(code);
    expect(errno(() => client.unbind(s.container, 2 ** 20))).toBe("EINVAL");
    expect(errno(() => client.unbind(s.container, pasid, { gpgd: 1n, addr_width: 0 }))).toBe(0);
  });

  it("a group that leaves has its tables unbound first; it may come back", () => {
    bind();
    client.task.close(s.device);
    expect(client.unsetContainer(s.group)).toBe(0);
    expect(rig.machine.pasids.ofUsers).toBe(0);
    client.setContainer(s.group, s.container);
    expect(client.setIommu(s.container, NESTING)).toBe(0);
    expect(errno(() => client.bind(s.container, pasid))).toBe("ENOENT");
  });

  it("a free of many unbinds those that are bound", () => {
    const more = [client.allocate(s.container), client.allocate(s.container)];
    bind();
    client.bind(s.container, more[1]!);
    expect(client.free(s.container, 0, 2 ** 31 - 1)).toBe(0);
    expect(rig.machine.pasids.ofUsers).toBe(0);
    expect(client.read(s, VA, pasid)).toBe("fault");
    expect(client.read(s, VA, more[1])).toBe("fault");
  });
});

describe("CACHE_INVLD", () => {
  let s: Setup;
  let pasid: number;
  let other: number;
  const {
    IOMMU_CACHE_INV_TYPE_IOTLB: IOTLB,
    IOMMU_CACHE_INV_TYPE_DEV_IOTLB: DEV,
    IOMMU_CACHE_INV_TYPE_PASID: CACHE,
  } = vsva;
  const [DOMAIN, PASID, ADDR] = [0, 1, 2];

  /** The guest's page is another one, and devices have seen the one before. */
  const remember = (...pasids: number[]): void => {
    client.writeTable(PAGE);
    for (const each of pasids) client.invalidatePage(s.container, each);
    for (const each of pasids) expect(client.read(s, VA, each)).toBe(1);
    client.writeTable(2 * PAGE);
    for (const each of pasids) expect(client.read(s, VA, each)).toBe(1);
  };
  const invalidate = (members: Parameters<NestingClient["invalidate"]>[1]): unknown =>
    errno(() => client.invalidate(s.container, members));
  const addresses = (members = {}) => ({
    addr_info: {
      flags: 1,
      pasid: BigInt(pasid),
      addr: BigInt(VA),
      granule_size: 4096n,
      nb_granules: 1n,
      ...members,
    },
  });

  beforeEach(() => {
    s = client.setUp(FIRST);
    [pasid, other] = [client.allocate(s.container, 10, 20), client.allocate(s.container, 10, 20)];
    client.poke(PAGE, Uint8Array.of(1));
    client.poke(2 * PAGE, Uint8Array.of(2));
    client.bind(s.container, pasid, { flags: 1n, gpasid: 500n });
    client.bind(s.container, other);
  });

  it("the combinations of cache and granularity that the proposal allows, several caches only where all do", () => {
    for (let cache = 0; cache < 16; cache++)
      for (let granularity = 0; granularity < 4; granularity++) {
        const types = [1, 2, 4].filter((type) => cache & type);
        const valid =
          cache > 0 &&
          cache < 8 &&
          granularity < 3 &&
          types.every((type) => vsva.CACHE_INVALIDATION_VALID[type]!.includes(granularity));
        const granu = granularity === ADDR ? addresses() : { pasid_info: { flags: 1, pasid: BigInt(pasid) } };
        const name = `cache ${cache} by ${granularity}`;
        expect(invalidate({ cache, granularity, granu }), name).toBe(valid ? 0 : "EINVAL");
      }
  });

  it("by addresses: these, of this PASID, for unit and device", () => {
    remember(pasid, other);
    expect(invalidate({ cache: IOTLB | DEV, granularity: ADDR, granu: addresses() })).toBe(0);
    expect([client.read(s, VA, pasid), client.read(s, VA, other)]).toEqual([2, 1]);
    remember(pasid);
    const elsewhere = addresses({ addr: BigInt(VA + 16 * PAGE), flags: 1 | 4 });
    expect(invalidate({ cache: IOTLB, granularity: ADDR, granu: elsewhere })).toBe(0);
    expect(client.read(s, VA, pasid)).toBe(1);
    const large = addresses({ addr: 0n, granule_size: 2n ** 30n, nb_granules: 2n ** 34n, flags: 1 | 4 });
    expect(invalidate({ cache: IOTLB, granularity: ADDR, granu: large })).toBe(0);
    expect(client.read(s, VA, pasid)).toBe(2);
  });

  it("by PASID: everything of it; the host's number or the guest's", () => {
    for (const called of [pasid, 500]) {
      remember(pasid, other);
      const granu = { pasid_info: { flags: 1, pasid: BigInt(called) } };
      expect(invalidate({ cache: IOTLB, granularity: PASID, granu })).toBe(0);
      expect([client.read(s, VA, pasid), client.read(s, VA, other)]).toEqual([2, 1]);
    }
    remember(pasid);
    const granu = { pasid_info: { flags: 3, archid: 9, pasid: BigInt(pasid) } };
    expect(invalidate({ cache: CACHE | IOTLB, granularity: PASID, granu })).toBe(0);
    expect(client.read(s, VA, pasid)).toBe(2);
  });

  it("by domain: everything of the container", () => {
    remember(pasid, other);
    expect(invalidate({ cache: IOTLB, granularity: DOMAIN })).toBe(0);
    expect([client.read(s, VA, pasid), client.read(s, VA, other)]).toEqual([2, 2]);
  });

  it.each<[string, Parameters<NestingClient["invalidate"]>[1]]>([
    ["version 2", { version: 2, cache: 1 }],
    ["argsz too small", { argsz: 55, cache: 1 }],
    ["padding", { cache: 1, padding: [0, 0, 0, 0, 0, 1] }],
    ["no cache", { cache: 0 }],
    ["PASID granularity without a PASID", { cache: 1, granularity: 1, granu: { pasid_info: { flags: 2 } } }],
    ["an unknown flag", { cache: 1, granularity: 1, granu: { pasid_info: { flags: 5, pasid: 10n } } }],
  ])("%s: EINVAL", (_what, members) => {
    expect(invalidate(members)).toBe("EINVAL");
  });

  it.each<[string, object]>([
    ["no PASID", { flags: 0 }],
    ["an unknown flag", { flags: 9 }],
    ["granules of half a page", { granule_size: 2048n }],
    ["granules of three pages", { granule_size: 3n * 4096n }],
    ["granule size 0", { granule_size: 0n }],
    ["no granule", { nb_granules: 0n }],
    ["an address within a page", { addr: BigInt(VA + 8) }],
    ["an address within a granule", { granule_size: 2n ** 21n, addr: BigInt(PAGE) }],
    ["beyond 64 bits", { addr: 2n ** 64n - 4096n, nb_granules: 2n }],
    ["a number of granules that overflows", { nb_granules: 2n ** 63n }],
  ])("ADDR with %s: EINVAL", (_what, members) => {
    expect(invalidate({ cache: IOTLB, granularity: ADDR, granu: addresses(members) })).toBe("EINVAL");
  });

  it("the PASID must be the caller's and have a table here", () => {
    const by = (number: number | bigint) => {
      const granu = { pasid_info: { flags: 1, pasid: BigInt(number) } };
      return invalidate({ cache: IOTLB, granularity: PASID, granu });
    };
    expect(by(19)).toBe("ENOENT");
    expect(by(client.allocate(s.container, 19, 19))).toBe("ENOENT");
    expect(by(2 ** 20)).toBe("EINVAL");
    expect(by(2n ** 63n)).toBe("EINVAL");
    const stranger = newClient();
    const container = client.task.pass(s.container, stranger.task);
    expect(by(stranger.allocate(container))).toBe("EACCES");
    expect(errno(() => stranger.invalidatePage(container, 500))).toBe("EACCES");
    const short = vsva.IommuCacheInvalidateInfo.bytes({ argsz: 56, version: 1, cache: 1 });
    expect(errno(() => client.operate(s.container, INVALIDATE, short, 8 + 55))).toBe("EINVAL");
  });

  it("after unbind there is nothing to invalidate", () => {
    client.unbind(s.container, pasid);
    expect(errno(() => client.invalidatePage(s.container, pasid))).toBe("ENOENT");
    expect(errno(() => client.invalidatePage(s.container, 500))).toBe("ENOENT");
  });
});
