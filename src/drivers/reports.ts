/** Faults that drivers keep as they read them from their units, for whoever asks. */

/** Older ones are counted only. */
const REPORTS = 256;

export const keepReport = <Fault>(reports: Fault[], fault: Fault): void => {
  if (reports.length === REPORTS) reports.shift();
  reports.push(fault);
};
