/** Faults of a unit as its driver learns of them: the fault event and the recording registers (revision 4.1, §7.2, §7.3). */
import { FaultCode } from "../../hardware/vtd/faults.ts";
import { FaultRecording, Fsts, FstsRegister, Register } from "../../hardware/vtd/spec.ts";
import type { FaultReason } from "../../iommu/driver.ts";
import type { Message, MsiController } from "../../kernel/msi.ts";
import { keepReport } from "../reports.ts";
import type { Abilities } from "./abilities.ts";
import { enableEvent } from "./event-message.ts";
import type { Registers } from "./registers.ts";

/** A fault as the driver read it from the unit's registers. */
export interface ReportedFault {
  readonly rid: number;
  /** Absent: the request had none. */
  readonly pasid?: number;
  readonly address: bigint;
  readonly write: boolean;
  readonly code: number;
}

export class Faults {
  /** The last ones, and how many there were in all. */
  readonly reports: ReportedFault[] = [];
  count = 0;
  /** Times that the unit had more faults than registers for them: some were not recorded. */
  overflows = 0;
  readonly #registers: Registers;
  readonly #records: number;
  readonly #offset: number;
  readonly #message: Message;
  readonly #told: (fault: ReportedFault) => void;

  /** `told` hears of each. */
  constructor(
    registers: Registers,
    { faultRecords, faultRecordOffset }: Abilities,
    msi: MsiController,
    told: (fault: ReportedFault) => void,
  ) {
    this.#registers = registers;
    this.#told = told;
    this.#records = faultRecords;
    this.#offset = faultRecordOffset;
    this.#message = msi.allocate(() => this.#read());
    enableEvent(registers, Register.FECTL, this.#message);
  }

  free(): void {
    this.#message.free();
  }

  /** The fault event (§7.3.1): read and clear every pending record, then the overflow. */
  #read(): void {
    const status = this.#registers.read32(Register.FSTS);
    const first = Number(FstsRegister.fields.FRI.of(BigInt(status)));
    for (let i = 0; i < this.#records; i++) {
      const at = this.#offset + ((first + i) % this.#records) * FaultRecording.bytes;
      const high = this.#registers.read64(at + 8);
      const record = (high << 64n) | this.#registers.read64(at);
      if (FaultRecording.fields.F.of(record) === 0n) break;
      this.#report(record);
      this.#registers.write64(at + 8, high);
    }
    if (status & Fsts.PFO) this.overflows += 1;
    this.#registers.write32(Register.FSTS, Fsts.PFO);
  }

  #report(record: bigint): void {
    const { FI, SID, FR, T1, PP, PV } = FaultRecording.fields;
    this.count += 1;
    const fault: ReportedFault = {
      rid: Number(SID.of(record)),
      ...(PP.of(record) === 1n && { pasid: Number(PV.of(record)) }),
      address: FI.of(record),
      write: T1.of(record) === 0n,
      code: Number(FR.of(record)),
    };
    keepReport(this.reports, fault);
    this.#told(fault);
  }
}

/** §7.1.3 What a code of scalable mode says to the owner of a first stage; the second stage and all above are the host's. */
const REASONS: ReadonlyMap<number, FaultReason> = new Map([
  [FaultCode.directoryAccess, "pasid-fetch"],
  [FaultCode.pasidAccess, "pasid-fetch"],
  [FaultCode.directoryReserved, "bad-pasid-entry"],
  [FaultCode.pasidReserved, "bad-pasid-entry"],
  [FaultCode.pasidInvalid, "bad-pasid-entry"],
  [FaultCode.directoryNotPresent, "pasid-invalid"],
  [FaultCode.pasidNotPresent, "pasid-invalid"],
  [FaultCode.pasidBeyondDirectory, "pasid-invalid"],
  [FaultCode.pasidDisabled, "pasid-invalid"],
  [FaultCode.firstAccess, "walk-abort"],
  [FaultCode.firstRootAccess, "walk-abort"],
  [FaultCode.nestedTableWidth, "walk-abort"],
  [FaultCode.nestedRootRead, "walk-abort"],
  [FaultCode.nestedTableRead, "walk-abort"],
  [FaultCode.nestedTableWrite, "accessed-flag"],
  [FaultCode.firstNotPresent, "entry"],
  [FaultCode.firstReserved, "entry"],
  [FaultCode.executeDisabled, "permission"],
  [FaultCode.supervisorDisabled, "permission"],
  [FaultCode.userPage, "permission"],
  [FaultCode.noExecute, "permission"],
  [FaultCode.noWrite, "permission"],
  [FaultCode.noRead, "permission"],
  [FaultCode.notCanonical, "address-range"],
  [FaultCode.unitWidth, "address-range"],
  [FaultCode.secondWidth, "address-range"],
]);

export const reasonOf = (code: number): FaultReason => REASONS.get(code) ?? "unknown";
