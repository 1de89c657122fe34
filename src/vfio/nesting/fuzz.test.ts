/** Whatever programs ask of nesting containers, the answer is a value or an errno with a reason, and nothing stays behind. */
import { expect, it } from "vitest";
import { FIRST, NestingRig, ROOT, SECOND, type Setup, VA } from "../../../test/support/nesting-client.ts";
import { Random } from "../../base/clock.ts";
import { LinuxError } from "../../uapi/errno.ts";
import * as vsva from "../../uapi/vsva.ts";

const CALLS = 20_000;

it("20,000 random requests of three programs end in values and errnos", { timeout: 120_000 }, () => {
  const rig = new NestingRig();
  const random = new Random(2020);
  const pick = <T>(list: readonly T[]): T => list[random.below(list.length)]!;
  const clients = [rig.client({ uid: 1 }), rig.client({ uid: 1 }), rig.client({ uid: 2 })];
  rig.machine.pasids.quota = 8;
  const outcomes = new Map<string, number>();
  const count = (name: string) => outcomes.set(name, (outcomes.get(name) ?? 0) + 1);
  const attempt = (work: () => unknown): void => {
    try {
      work();
      count("done");
    } catch (error) {
      if (!(error instanceof LinuxError)) throw error;
      expect(error.reason.length).toBeGreaterThan(8);
      count(error.code);
    }
  };
  let setups: Setup[] = [];
  /** Two containers of the first program, which the others have too. */
  const fresh = (): void => {
    for (const { task } of clients) for (const fd of task.descriptors) task.close(fd);
    setups = [clients[0]!.setUp(FIRST), clients[0]!.setUp(SECOND)];
    for (const other of clients.slice(1))
      for (const { container } of setups) clients[0]!.task.pass(container, other.task);
  };
  const containersOf = (who: number): number[] =>
    who === 0 ? setups.map(({ container }) => container) : [...clients[who]!.task.descriptors];
  const small = (): number => random.below(12);
  const wild = (): bigint => pick([0n, 1n, 2n ** 20n, 2n ** 31n, 2n ** 64n - 1n, BigInt(VA), BigInt(ROOT)]);
  const argument = (): Uint8Array => {
    const words = new Uint32Array(32);
    for (let at = 0; at < words.length; at++)
      words[at] = pick([0, 1, 2, 3, small(), 48, 4096, random.next()]);
    words[0] = pick([0, 8, 16, 64, 80, 128, random.next()]);
    words[1] = pick([0, 1, 2, 3, 16, 18, random.next()]);
    words[2] = pick([56, 72, 8, random.next()]);
    words[3] = pick([1, 1, 1, random.next()]);
    return new Uint8Array(words.buffer);
  };
  for (let call = 0; call < CALLS; call++) {
    if (call % 400 === 0) fresh();
    const who = random.below(3);
    const client = clients[who]!;
    const container = pick(containersOf(who));
    const granu = {
      addr_info: {
        flags: random.below(9),
        pasid: random.below(9) ? BigInt(small()) : wild(),
        addr: random.below(2) ? BigInt(VA) : wild(),
        granule_size: pick([4096n, 2n ** 21n, wild()]),
        nb_granules: pick([1n, 512n, wild()]),
      },
    };
    switch (random.below(8)) {
      case 0:
        attempt(() =>
          client.pasidRequest(container, random.below(5), small(), small(), pick([16, 16, 16, 15])),
        );
        break;
      case 1:
        attempt(() => client.allocate(container, small(), 12));
        break;
      case 2:
        attempt(() =>
          client.bind(container, small(), {
            gpgd: pick([BigInt(ROOT), wild()]),
            flags: BigInt(random.below(3)),
          }),
        );
        break;
      case 3:
        attempt(() => client.unbind(container, small()));
        break;
      case 4:
        attempt(() =>
          client.invalidate(container, { cache: random.below(9), granularity: random.below(4), granu }),
        );
        break;
      case 5:
        attempt(() =>
          client.task.ioctl(
            container,
            pick([vsva.VFIO_IOMMU_PASID_REQUEST, vsva.VFIO_IOMMU_NESTING_OP]),
            pick([argument(), wild()]),
          ),
        );
        break;
      case 6:
        attempt(() => client.info(container));
        break;
      default:
        attempt(() => client.free(container, small(), 12));
    }
    expect(rig.machine.pasids.ofUsers).toBeLessThanOrEqual(clients.length * rig.machine.pasids.quota);
  }
  for (const code of ["done", "EINVAL", "EFAULT", "ENOENT", "EACCES", "EBUSY", "ENOSPC"])
    expect(outcomes.get(code), code).toBeGreaterThan(0);
  for (const { task } of clients) task.exit();
  expect(rig.left()).toEqual([]);
  rig.machine.close();
});
