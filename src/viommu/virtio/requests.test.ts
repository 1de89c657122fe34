/** A virtio-iommu on a host, by requests as a driver writes them (virtio 1.3, §5.13.6). */
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { codeOf } from "../../../test/support/code-of.ts";
import { GUEST_RIDS, GuestRig, RAM_BYTES } from "../../../test/support/guest-rig.ts";
import { type Fault, VirtioIommuDevice } from "../../guest/virtio/device.ts";
import {
  ATTACH_F_BYPASS,
  AttachRequest,
  DetachRequest,
  FaultFlag,
  FaultReason,
  MapRequest,
  ProbeRequest,
  PropertyType,
  RequestType,
  ReservedKind,
  ReservedMemory,
  requestBytes,
  UnmapRequest,
} from "./spec.ts";

const PAGE = 4096n;
const [FIRST, SECOND] = GUEST_RIDS;
const NOBODY = 0x99;

let rig: GuestRig;
let device: VirtioIommuDevice;
let faults: Fault[];
beforeEach(() => {
  rig = new GuestRig("vtd", "shadow", { shows: "virtio" });
  faults = [];
  device = new VirtioIommuDevice("virtio", rig.vmm.iommu, rig.vmm.memory, (fault) => faults.push(fault));
  device.setBypass(false);
});
afterEach(() => {
  expect(rig.close()).toEqual({});
});

/** How the request ended: "OK", or the errno of its status. */
const ended = (type: number, bytes: Uint8Array): string =>
  codeOf(() => device.request("request", bytes.subarray(0, requestBytes[type]))) ?? "OK";
const attach = (domain: number, endpoint: number, more: { flags?: number; reserved?: number } = {}) =>
  ended(RequestType.ATTACH, AttachRequest.bytes({ type: RequestType.ATTACH, domain, endpoint, ...more }));
const detach = (domain: number, endpoint: number) =>
  ended(
    RequestType.DETACH,
    DetachRequest.bytes({ type: RequestType.DETACH, domain, endpoint, reserved: [1, 2] }),
  );
const map = (domain: number, start: bigint, last: bigint, phys = 0x10_0000n, flags = 3) =>
  ended(
    RequestType.MAP,
    MapRequest.bytes({
      ...{ type: RequestType.MAP, domain, virt_start: start, virt_end: last, phys_start: phys, flags },
    }),
  );
const unmap = (domain: number, start: bigint, last: bigint) =>
  ended(
    RequestType.UNMAP,
    UnmapRequest.bytes({ type: RequestType.UNMAP, domain, virt_start: start, virt_end: last }),
  );
const fetched = (address: bigint, index = 0): string => {
  const function_ = rig.devices[index]!;
  function_.fetch(Number(address), 4);
  const result = rig.settle(function_);
  rig.work.run();
  return result === "done" ? Buffer.from(function_.read(4)).toString() : result;
};
const put = (pa: number, text: string) => rig.vmm.memory.writeBytes(pa, Buffer.from(text));
const held = () => rig.vmm.backEnd.held;

describe("§5.13.6.1 ATTACH", () => {
  it("makes a domain, which several endpoints can have, and moves an endpoint from the one that it has", () => {
    put(0x10_0000, "page");
    expect(attach(1, FIRST)).toBe("OK");
    expect(map(1, 0x5000n, 0x5fffn)).toBe("OK");
    expect(attach(1, SECOND)).toBe("OK");
    expect([fetched(0x5000n, 0), fetched(0x5000n, 1)]).toEqual(["page", "page"]);
    expect(attach(2, SECOND)).toBe("OK");
    expect([fetched(0x5000n, 0), fetched(0x5000n, 1)]).toEqual(["page", "fault"]);
    expect(attach(2, FIRST)).toBe("OK");
    expect(held()).toBe(0); // nobody has domain 1, and so there is none
    expect(map(1, 0x5000n, 0x5fffn)).toBe("ENOENT");
  });

  it("refuses reserved fields, unknown flags, unknown endpoints and domains out of range", () => {
    expect(attach(1, FIRST, { reserved: 1 })).toBe("EINVAL");
    expect(attach(1, FIRST, { flags: 2 })).toBe("EINVAL");
    expect(attach(1, NOBODY)).toBe("ENOENT");
    expect(attach(0x1_0000, FIRST)).toBe("ERANGE");
  });

  it("with the bypass flag makes a domain that passes everything, where nothing can be mapped", () => {
    put(0x10_0000, "page");
    expect(fetched(0x10_0000n)).toBe("fault");
    expect(attach(1, FIRST, { flags: ATTACH_F_BYPASS })).toBe("OK");
    expect(fetched(0x10_0000n)).toBe("page");
    expect(map(1, 0x5000n, 0x5fffn)).toBe("EINVAL");
    expect(unmap(1, 0x5000n, 0x5fffn)).toBe("EINVAL");
    expect(attach(1, SECOND)).toBe("EINVAL"); // as one that is no bypass domain
    expect(detach(1, FIRST)).toBe("OK");
    expect(fetched(0x10_0000n)).toBe("fault");
  });
});

describe("§5.13.6.2 DETACH", () => {
  it("takes everything from the endpoint, and passes over its reserved field", () => {
    attach(1, FIRST);
    map(1, 0x5000n, 0x5fffn);
    expect(detach(1, FIRST)).toBe("OK");
    expect(fetched(0x5000n)).toBe("fault");
    expect(held()).toBe(0);
  });

  it("refuses an endpoint that is not, and one that has not the domain", () => {
    attach(1, FIRST);
    expect(detach(1, NOBODY)).toBe("ENOENT");
    expect([detach(2, FIRST), detach(1, SECOND)]).toEqual(["EINVAL", "EINVAL"]);
  });
});

describe("§5.13.6.3 MAP", () => {
  beforeEach(() => {
    attach(1, FIRST);
  });

  it("lets the endpoint do what the flags say and no more", () => {
    const function_ = rig.devices[0]!;
    const stored = (address: number): string => {
      function_.write(Buffer.from("new!"));
      function_.store(address, 4);
      return rig.settle(function_);
    };
    put(0x10_0000, "page");
    expect(map(1, 0x5000n, 0x5fffn, 0x10_0000n, 1)).toBe("OK");
    expect(stored(0x5000)).toBe("fault");
    expect(fetched(0x5000n)).toBe("page");
    expect(map(1, 0x6000n, 0x6fffn, 0x10_0000n, 2)).toBe("OK");
    expect(stored(0x6000)).toBe("done");
    expect(fetched(0x5000n)).toBe("new!");
  });

  it("refuses what is not whole pages, or not of the host's or the guest's addresses (RANGE)", () => {
    const outside = device.config.input_end + 1n;
    expect(map(1, 0x5001n, 0x5fffn)).toBe("ERANGE");
    expect(map(1, 0x5000n, 0x5ffen)).toBe("ERANGE");
    expect(map(1, 0x5000n, 0x5fffn, 0x10_0001n)).toBe("ERANGE");
    expect(map(1, 0x6000n, 0x5fffn)).toBe("ERANGE");
    expect(map(1, outside, outside + PAGE - 1n)).toBe("ERANGE");
    expect(map(1, 0n, 2n ** 64n - 1n)).toBe("ERANGE");
    expect(map(1, 0x5000n, 0x5fffn, BigInt(RAM_BYTES))).toBe("ERANGE");
    expect(map(1, 0x5000n, 0x6fffn, BigInt(RAM_BYTES) - PAGE)).toBe("ERANGE");
    expect(map(1, 0x5000n, 0x5fffn, 2n ** 64n - PAGE)).toBe("ERANGE");
    expect(held()).toBe(0);
  });

  it("refuses unknown flags, what is mapped, and what is reserved (INVAL), and a domain that is not (NOENT)", () => {
    expect(map(1, 0x5000n, 0x5fffn, 0x10_0000n, 4)).toBe("EINVAL");
    expect(map(1, 0x5000n, 0x5fffn, 0x10_0000n, 0)).toBe("EINVAL");
    expect(map(1, 0x5000n, 0x7fffn)).toBe("OK");
    expect(map(1, 0x7000n, 0x8fffn)).toBe("EINVAL");
    expect(map(1, 0xfee0_0000n, 0xfee0_0fffn)).toBe("EINVAL");
    expect(map(2, 0x5000n, 0x5fffn)).toBe("ENOENT");
    expect(held()).toBe(1);
  });
});

describe("§5.13.6.4 UNMAP", () => {
  const page = (index: number): bigint => BigInt(index) * PAGE;
  const mapPages = (first: number, last: number) => map(1, page(first), page(last + 1) - 1n);
  const unmapPages = (first: number, last: number) => unmap(1, page(first), page(last + 1) - 1n);
  beforeEach(() => {
    attach(1, FIRST);
  });

  it("does as the examples of the specification", () => {
    expect(unmapPages(0, 4)).toBe("OK"); // (1)
    mapPages(0, 9);
    expect([unmapPages(0, 9), held()]).toEqual(["OK", 0]); // (2)
    mapPages(0, 4);
    mapPages(5, 9);
    expect([unmapPages(0, 9), held()]).toEqual(["OK", 0]); // (3)
    mapPages(0, 9);
    expect([unmapPages(0, 4), held()]).toEqual(["ERANGE", 1]); // (4)
    expect([unmapPages(5, 9), unmapPages(2, 3), held()]).toEqual(["ERANGE", "ERANGE", 1]);
    unmapPages(0, 9);
    mapPages(0, 4);
    mapPages(5, 9);
    expect([unmapPages(0, 4), held()]).toEqual(["OK", 1]); // (5)
    unmapPages(5, 9);
    mapPages(0, 4);
    expect([unmapPages(0, 9), held()]).toEqual(["OK", 0]); // (6)
    mapPages(0, 4);
    mapPages(10, 14);
    expect([unmapPages(0, 14), held()]).toEqual(["OK", 0]); // (7)
  });

  it("takes bytes as well as pages: a mapping that would be split stays", () => {
    mapPages(1, 2);
    expect(unmap(1, page(1) + 1n, page(3) - 1n)).toBe("ERANGE");
    expect(unmap(1, page(1), page(3) - 2n)).toBe("ERANGE");
    expect(unmap(1, page(3) + 5n, page(4))).toBe("OK");
    expect(held()).toBe(1);
    expect(unmap(1, 0n, 2n ** 64n - 1n)).toBe("OK");
    expect(held()).toBe(0);
    expect(unmap(1, 5n, 4n)).toBe("EINVAL");
    expect(unmap(2, 0n, 4095n)).toBe("ENOENT");
  });
});

describe("§5.13.6.5 PROBE", () => {
  const probe = (endpoint: number, answer = device.config.probe_size): Uint8Array =>
    device.request("PROBE", ProbeRequest.bytes({ type: RequestType.PROBE, endpoint }), answer);

  it("tells the addresses of messages, and what the host does not map, apart from each other", () => {
    const properties = probe(FIRST);
    const { type, length, subtype, start, end } = ReservedMemory.read(properties);
    expect({ type, length, subtype, start, end }).toEqual({
      ...{ type: PropertyType.RESV_MEM, length: 20, subtype: ReservedKind.MSI },
      ...{ start: 0xfee0_0000n, end: 0xfeef_ffffn },
    });
  });

  it("refuses an endpoint that is not, and a buffer that is too small", () => {
    expect(codeOf(() => probe(NOBODY))).toBe("ENOENT");
    expect(codeOf(() => probe(FIRST, device.config.probe_size - 8))).toBe("EINVAL");
  });
});

describe("§5.13.6.7 faults", () => {
  it("are told with endpoint, address, access, and whether there is a domain", () => {
    expect(fetched(0x7000n)).toBe("fault");
    attach(1, SECOND);
    const function_ = rig.devices[1]!;
    function_.store(0x1_2345_6000, 4);
    expect(rig.settle(function_)).toBe("fault");
    rig.work.run();
    const { DOMAIN, MAPPING } = FaultReason;
    const { READ, WRITE, ADDRESS } = FaultFlag;
    expect(faults).toEqual([
      expect.objectContaining({ reason: DOMAIN, flags: READ | ADDRESS, endpoint: FIRST, address: 0x7000n }),
      expect.objectContaining({
        ...{ reason: MAPPING, flags: WRITE | ADDRESS, endpoint: SECOND, address: 0x1_2345_6000n },
      }),
    ]);
  });

  it("come again and again: buffers go back to the queue", () => {
    for (let count = 0; count < 40; count++) expect(fetched(0x7000n)).toBe("fault");
    expect(faults).toHaveLength(40);
  });
});

describe("§5.13.4 bypass, and a reset", () => {
  it("bypass lets endpoints without a domain pass, whatever those with one have", () => {
    put(0x10_0000, "page");
    attach(1, SECOND);
    device.setBypass(true);
    expect([fetched(0x10_0000n, 0), fetched(0x10_0000n, 1)]).toEqual(["page", "fault"]);
    device.setBypass(false);
    expect(fetched(0x10_0000n, 0)).toBe("fault");
  });

  it("after a reset no endpoint has a domain, and bypass is as it was", () => {
    put(0x10_0000, "page");
    attach(1, FIRST);
    map(1, 0x5000n, 0x5fffn);
    device.close();
    expect(held()).toBe(0);
    expect([fetched(0x5000n), fetched(0x10_0000n)]).toEqual(["fault", "fault"]);
  });
});
