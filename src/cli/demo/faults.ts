/** Faults that can be injected into stories: those of the machine and those of a modelled VMM. */
import { VMM_BREAKS, type VmmBreak } from "../../guest/breaks.ts";
import { BREAKS, type Break } from "../../machine/breaks.ts";

export type Fault = Break | VmmBreak;
export const FAULTS: { readonly [F in Fault]: string } = { ...BREAKS, ...VMM_BREAKS };
