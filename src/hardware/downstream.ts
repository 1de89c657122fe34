/**
 * Who else answers for what a unit's queue asks: whatever stands behind a unit that is not silicon (a guest's). It may
 * collect what it is told, but what it was told before the queue waits (VT-d: a wait descriptor; SMMUv3: a SYNC) has to be
 * done when that is taken.
 */
export interface Downstream {
  /** A well-formed entry at this place of the queue is about to be carried out. */
  take(words: Uint32Array, at: number): number;
  /** Nothing follows for now. */
  drain(): number;
  /** Both return -1, or where in the queue the entry is that could not be carried out: the queue stops there. */
}
