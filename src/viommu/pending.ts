/**
 * Invalidations that a guest's queue asks for, collected until they have to be done, because the host takes many with one
 * call; and where in the queue each was, for the one that the host refuses.
 */

/** How far a list of them came. */
export interface Told {
  /** How many were done. */
  readonly done: number;
  /** What stopped it at the one after them. */
  readonly error?: unknown;
}

export class Pending<Request> {
  readonly #requests: Request[] = [];
  readonly #places: number[] = [];

  collect(request: Request, at: number): void {
    this.#requests.push(request);
    this.#places.push(at);
  }

  /** Tells somebody all of them together: -1, or where the first is that was not done, and `refused` has heard why. */
  drain(tell: (requests: readonly Request[]) => Told, refused: (error: unknown) => void): number {
    if (this.#requests.length === 0) return -1;
    const requests = this.#requests.splice(0);
    const places = this.#places.splice(0);
    const { done, error } = tell(requests);
    if (done === requests.length) return -1;
    refused(error);
    return places[done]!;
  }
}
