/**
 * What a client may do on the modelled host. Its capabilities are those the real kernel gives it, with one exception: a
 * capability that nobody in this run can have (softiommu itself lacks it: an ordinary user, root of a container) is
 * there for whoever is root on the modelled host, because there it was never taken away. A client that drops
 * capabilities has dropped them. Leaves out: user namespaces made by the client itself.
 */

/**
 * Who is root on the modelled host: `own`, who is root on this computer; `root`, every program of the run, whoever
 * started it.
 */
export type PrivilegeMode = "own" | "root";

/** Of one process: its effective user, and its effective set with capability n as bit n. */
export interface Credentials {
  readonly uid: number;
  readonly effective: number;
}

/** Sets have 41 bits, beyond what bit operations reach. */
const contains = (set: number, capability: number): boolean => Math.floor(set / 2 ** capability) % 2 === 1;

/** Whether a client of a run that `runner` started has the capability of that number. */
export const isCapable = (
  mode: PrivilegeMode,
  runner: Credentials,
  client: Credentials,
  capability: number,
): boolean => {
  if (contains(client.effective, capability)) return true;
  if (contains(runner.effective, capability)) return false;
  const isRoot = mode === "root" ? client.uid === runner.uid : client.uid === 0;
  const droppedAll = runner.effective !== 0 && client.effective === 0;
  return isRoot && !droppedAll;
};
