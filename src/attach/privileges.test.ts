import { describe, expect, it } from "vitest";
import { isCapable } from "./privileges.ts";

const IPC_LOCK = 14;
const SYS_RESOURCE = 24;
const BPF = 39;
const set = (...capabilities: number[]): number => capabilities.reduce((sum, bit) => sum + 2 ** bit, 0);

describe("a client's capabilities", () => {
  const fullRoot = { uid: 0, effective: set(IPC_LOCK, SYS_RESOURCE, BPF) };
  const containerRoot = { uid: 0, effective: set(IPC_LOCK) };
  const user = { uid: 1000, effective: 0 };

  it("are those the kernel gives it, where softiommu could have them all", () => {
    for (const mode of ["own", "root"] as const) {
      expect(isCapable(mode, fullRoot, fullRoot, SYS_RESOURCE)).toBe(true);
      expect(isCapable(mode, fullRoot, fullRoot, BPF)).toBe(true);
      expect(isCapable(mode, fullRoot, { uid: 0, effective: set(SYS_RESOURCE) }, IPC_LOCK)).toBe(false);
      expect(isCapable(mode, fullRoot, { uid: 1000, effective: set(SYS_RESOURCE) }, SYS_RESOURCE)).toBe(true);
      expect(isCapable(mode, fullRoot, user, IPC_LOCK)).toBe(false);
    }
  });

  it("of root are whole where the container takes some away, but for those it drops itself", () => {
    for (const mode of ["own", "root"] as const) {
      expect(isCapable(mode, containerRoot, containerRoot, SYS_RESOURCE)).toBe(true);
      const without = { uid: 0, effective: set(1) };
      expect(isCapable(mode, containerRoot, without, IPC_LOCK)).toBe(false);
      expect(isCapable(mode, containerRoot, without, SYS_RESOURCE)).toBe(true);
      expect(isCapable(mode, containerRoot, { uid: 0, effective: 0 }, SYS_RESOURCE)).toBe(false);
      expect(isCapable(mode, containerRoot, user, SYS_RESOURCE)).toBe(false);
    }
  });

  it("of an ordinary user are none, unless the machine makes whoever runs it root", () => {
    expect(isCapable("own", user, user, IPC_LOCK)).toBe(false);
    expect(isCapable("root", user, user, IPC_LOCK)).toBe(true);
    expect(isCapable("root", user, user, SYS_RESOURCE)).toBe(true);
    expect(isCapable("root", user, { uid: 1001, effective: 0 }, SYS_RESOURCE)).toBe(false);
  });
});
