/** Parts of a host that are made to say something else than they should, to see that it is found out. */

/** Puts another getter in the place of one, until the function that comes back is called. */
export const lie = <T, K extends keyof T & string>(
  of: { readonly prototype: T },
  name: K,
  say: (is: T[K]) => T[K],
) => {
  const { get } = Object.getOwnPropertyDescriptor(of.prototype, name)!;
  const put = (getter: () => T[K]) =>
    Object.defineProperty(of.prototype, name, { get: getter, configurable: true });
  put(function (this: T) {
    return say(get!.call(this) as T[K]);
  });
  return () => void put(get as () => T[K]);
};
