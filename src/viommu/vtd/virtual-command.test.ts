import { describe, expect, it } from "vitest";
import { VirtualPasids } from "../../drivers/vtd/virtual-pasids.ts";
import { Register, VcrspRegister, VirtualCommand, VirtualStatus } from "../../hardware/vtd/spec.ts";
import { LinuxError } from "../../uapi/errno.ts";
import { type PasidService, VirtualCommands } from "./virtual-command.ts";

/** Gives 7 and 8, takes them back; complains of everything else. */
class Service implements PasidService {
  readonly unused = [7, 8];
  allocate(): number {
    const pasid = this.unused.shift();
    if (pasid === undefined) throw new LinuxError("ENOSPC", "none is left");
    return pasid;
  }
  free(pasid: number): void {
    if (pasid !== 7 && pasid !== 8) throw new LinuxError("EINVAL", `${pasid} is nobody's`);
    this.unused.push(pasid);
  }
}

const make = () => {
  const refused: string[] = [];
  const service = new Service();
  return { service, refused, commands: new VirtualCommands(service, ({ code }) => refused.push(code)) };
};
const status = (commands: VirtualCommands): number =>
  Number(VcrspRegister.fields.SC.of(commands.read(Register.VCRSP, 8)!));

describe("§11.4 virtual command registers", () => {
  it("allocate and free, and say what came of it", () => {
    const { commands, refused } = make();
    expect(commands.read(Register.VCCAP, 8)).toBe(1n);
    commands.write(Register.VCMD, 8, BigInt(VirtualCommand.allocatePasid));
    expect([status(commands), commands.read(Register.VCRSP, 8)]).toEqual([0, 7n << 16n]);
    commands.write(Register.VCMD, 8, (7n << 16n) | BigInt(VirtualCommand.freePasid));
    expect(status(commands)).toBe(VirtualStatus.success);
    commands.write(Register.VCMD, 8, (9n << 16n) | BigInt(VirtualCommand.freePasid));
    expect(status(commands)).toBe(VirtualStatus.refused);
    commands.write(Register.VCMD, 8, 0x55n);
    expect(status(commands)).toBe(VirtualStatus.unknownCommand);
    expect(refused).toEqual(["EINVAL"]);
  });

  it("are written by halves too: the lower one submits", () => {
    const { commands, service } = make();
    service.unused.length = 0;
    commands.write(Register.VCMD + 4, 4, 0n);
    expect(commands.read(Register.VCRSP, 8)).toBe(0n);
    commands.write(Register.VCMD, 4, (8n << 16n) | BigInt(VirtualCommand.freePasid));
    expect(service.unused).toEqual([8]);
    expect(commands.read(Register.VCMD, 4)).toBe((8n << 16n) | 2n);
    expect([commands.read(Register.VCMD + 4, 4), commands.read(Register.VCCAP + 4, 4)]).toEqual([0n, 0n]);
  });

  it("are no other registers", () => {
    const { commands } = make();
    for (const offset of [Register.GSTS, Register.VCMD - 8, Register.VCCAP + 8])
      expect(commands.read(offset, 4)).toBeUndefined();
    expect(commands.read(Register.VCMD + 4, 8)).toBeUndefined();
  });

  it("a driver takes PASIDs by them, and is told when it gets none", () => {
    const { commands } = make();
    const unit = {
      mmioRead: (offset: number, width: 4 | 8) =>
        commands.read(offset, width) ?? (offset === Register.ECAP ? 1n << 44n : 0n),
      mmioWrite: (offset: number, width: 4 | 8, value: bigint) => commands.write(offset, width, value),
    };
    expect(VirtualPasids.has(unit)).toBe(true);
    expect(VirtualPasids.has({ ...unit, mmioRead: () => 0n })).toBe(false);
    const pasids = new VirtualPasids(unit, "dmar0");
    expect([pasids.take(), pasids.take()]).toEqual([7, 8]);
    expect(() => pasids.take()).toThrow(expect.objectContaining({ code: "ENOSPC" }));
    pasids.give(8);
    expect(pasids.take()).toBe(8);
    expect(() => pasids.give(9)).toThrow(expect.objectContaining({ code: "EINVAL" }));
  });

  it("a driver does not wait for ever", () => {
    const unit = { mmioRead: () => 1n, mmioWrite: () => {} };
    expect(() => new VirtualPasids(unit, "dmar0").take()).toThrow(expect.objectContaining({ code: "EIO" }));
  });
});
