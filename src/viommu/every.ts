/** Work that is done for every one of several, whatever becomes of the others. */

/** Does it for all of them; then the first of the errors is thrown. */
export const forEvery = <T>(all: Iterable<T>, work: (one: T) => void): void => {
  const errors: unknown[] = [];
  for (const one of all)
    try {
      work(one);
    } catch (error) {
      errors.push(error);
    }
  if (errors.length > 0) throw errors[0];
};
