/**
 * Every IOMMU that a guest can have on every host there is, by map and unmap alone: each pair lives through the story of
 * `fallback`, every claim of which must hold, or its VMM refuses it and says which address, page or width its host lacks. The
 * VMM is the same everywhere, and finds out by trial what its host can do.
 */
import { parseMachine } from "../../machine/file.ts";
import { PRESETS } from "../../machine/presets.ts";
import { plain } from "../../trace/explain.ts";
import { LinuxError } from "../../uapi/errno.ts";
import { GUESTS, tellGuest } from "./fallback.ts";
import type { Fault } from "./faults.ts";
import { GuestStage } from "./guest-stage.ts";
import { Stage } from "./stage.ts";
import { Teller } from "./story.ts";

const MiB = 2 ** 20;
const TEXT = "bytes of a guest";

/** A guest of the matrix, and how its life is told on a stage. */
export interface MatrixGuest {
  readonly name: string;
  readonly tell: (stage: Stage, teller: Teller) => void;
}

export interface Cell {
  readonly guest: string;
  readonly host: string;
  /** Claims that were checked; 0: it was refused. */
  readonly claims: number;
  /** Those that do not hold, or why it was refused. */
  readonly wrong: readonly string[];
  readonly refusal: string | undefined;
}

/** A guest without an IOMMU, which never boots further than to use its device: all of its memory, and nothing else. */
const plainGuest =
  (bytes: number) =>
  (stage: Stage, teller: Teller): void => {
    const scene = new GuestStage(stage, "shadow", { shows: "none", ramBytes: bytes });
    const { vmm } = scene;
    const last = bytes - TEXT.length;
    vmm.memory.writeBytes(last, Buffer.from(TEXT));
    teller.claim("its addresses are the device's", scene.fetch(last, TEXT.length) === TEXT);
    const page = new Uint8Array(5);
    teller.claim("the device writes to them", scene.store(0x1000, "there") === "done");
    vmm.memory.readBytes(0x1000, page);
    teller.claim("and the guest sees it", Buffer.from(page).toString() === "there");
    teller.claim("beyond its memory there is nothing", scene.store(bytes, "stray") === "fault");
    vmm.exit();
    teller.claim(
      "it leaves nothing",
      Object.values(stage.machine.live()).every((count) => count === 0),
    );
  };

const MATRIX_GUESTS: readonly MatrixGuest[] = [
  { name: "none, 16 MiB of memory", tell: plainGuest(16 * MiB) },
  { name: "none, 192 MiB of memory", tell: plainGuest(192 * MiB) },
  ...(Object.entries(GUESTS) as [keyof typeof GUESTS, string][]).map(([unit, what]) => ({
    name: unit,
    tell: (stage: Stage, teller: Teller) => tellGuest(stage, teller, unit, what),
  })),
  {
    name: "tce, windows where POWER has them",
    tell: (stage, teller) => tellGuest(stage, teller, "tce-fixed", "windows where POWER has them"),
  },
];

/** What a refusal names: addresses that no aperture holds, a size of pages, or that there is no unit to begin with. */
const LACKS = /^the host has no aperture for .*0x|^the host maps pages of \d+ bytes|^the host has no IOMMU /;

/** One guest on one host. Refusals that do not name what the host lacks, and lives of which nothing was checked, are wrong. */
export const cellOf = (
  { name, tell }: MatrixGuest,
  host: string,
  text: string,
  faults: ReadonlySet<Fault> = new Set(),
): Cell => {
  const teller = new Teller(plain, () => {});
  let refusal: string | undefined;
  let stage: Stage | undefined;
  try {
    const description = parseMachine(text, host);
    if (description.units.length === 0)
      throw new LinuxError(
        "ENODEV",
        "the host has no IOMMU with a function behind it that a guest could be given",
      );
    stage = new Stage(description, faults);
    tell(stage, teller);
  } catch (error) {
    if (!(error instanceof LinuxError)) throw error;
    refusal = error.reason;
  } finally {
    stage?.close();
  }
  const wrong = teller.claims.filter(({ holds }) => !holds).map(({ claim }) => claim);
  const claims = teller.claims.length;
  if (refusal === undefined && claims === 0) wrong.push("nothing was checked");
  if (refusal !== undefined && (claims > 0 || !LACKS.test(refusal))) {
    wrong.push(refusal);
    refusal = undefined;
  }
  return { guest: name, host, claims, wrong, refusal };
};

/** Every guest on every preset. */
export const matrix = (faults: ReadonlySet<Fault> = new Set()): Cell[] =>
  MATRIX_GUESTS.flatMap((guest) => [...PRESETS].map(([host, text]) => cellOf(guest, host, text, faults)));

/** As a table of Markdown, with why refused guests are refused under it. */
export const matrixLines = (cells: readonly Cell[]): string[] => {
  const hosts = [...new Set(cells.map(({ host }) => host))];
  const reasons = [...new Set(cells.flatMap(({ refusal }) => refusal ?? []))];
  const shown = ({ claims, wrong, refusal }: Cell): string => {
    if (refusal !== undefined) return `refused (${reasons.indexOf(refusal) + 1})`;
    return wrong.length > 0 ? "fails" : `runs, ${claims} claims`;
  };
  const row = (first: string, rest: readonly string[]): string => `| ${[first, ...rest].join(" | ")} |`;
  const rows = MATRIX_GUESTS.map(({ name }) =>
    row(name, cells.filter(({ guest }) => guest === name).map(shown)),
  );
  return [
    row("guest's IOMMU \\ host", hosts),
    row(
      "---",
      hosts.map(() => "---"),
    ),
    ...rows,
    "",
    ...reasons.map((reason, index) => `${index + 1}. ${reason}`),
  ];
};

export const tellMatrix = (teller: Teller, faults: ReadonlySet<Fault>): void => {
  teller.scene("Every guest on every host, by map and unmap alone");
  const cells = matrix(faults);
  teller.show(matrixLines(cells));
  for (const { guest, host, wrong, refusal } of cells)
    teller.claim(
      refusal === undefined
        ? `${guest} on ${host}: every claim holds`
        : `${guest} on ${host} is refused, and why is said`,
      wrong.length === 0,
      refusal ?? wrong.join("; "),
    );
};
