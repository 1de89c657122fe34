/** How a driver reaches the registers of its unit; what the registers mean is the business of each driver's own class. */

export interface RegisterFile {
  mmioRead(offset: number, width: 4 | 8): bigint;
  mmioWrite(offset: number, width: 4 | 8, value: bigint): void;
}

export class RegisterAccess {
  protected readonly file: RegisterFile;
  /** Of the unit, for messages. */
  protected readonly name: string;

  constructor(file: RegisterFile, name: string) {
    this.file = file;
    this.name = name;
  }

  read32(offset: number): number {
    return Number(this.file.mmioRead(offset, 4));
  }
  write32(offset: number, value: number): void {
    this.file.mmioWrite(offset, 4, BigInt(value >>> 0));
  }
  read64(offset: number): bigint {
    return this.file.mmioRead(offset, 8);
  }
  write64(offset: number, value: bigint): void {
    this.file.mmioWrite(offset, 8, value);
  }
}
