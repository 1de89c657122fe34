/** The address of a function on its bus, as people write it ("0000:01:00.0") and as its requests carry it. */
import type { PciAddress } from "./function.ts";

const hex = (value: number, digits: number): string => value.toString(16).padStart(digits, "0");

/** "0000:01:00.0" */
export const formatAddress = ({ segment, bus, device, function: number }: PciAddress): string =>
  `${hex(segment, 4)}:${hex(bus, 2)}:${hex(device, 2)}.${number}`;

/** Understands "0000:01:00.0" and "01:00.0" (segment 0); undefined for anything else. */
export const parseAddress = (text: string): PciAddress | undefined => {
  const match = /^(?:([0-9a-f]{4}):)?([0-9a-f]{2}):([01][0-9a-f])\.([0-7])$/i.exec(text);
  if (!match) return undefined;
  const [, segment = "0", bus = "", device = "", number = ""] = match;
  return {
    segment: Number.parseInt(segment, 16),
    bus: Number.parseInt(bus, 16),
    device: Number.parseInt(device, 16),
    function: Number.parseInt(number, 16),
  };
};

/** Requester id: bus << 8 | device << 3 | function. */
export const requesterId = (address: PciAddress): number =>
  (address.bus << 8) | (address.device << 3) | address.function;
