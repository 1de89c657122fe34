/**
 * Namespaces (§6.1): a controller's numbered arrays of blocks, each on a medium of its own with blocks of its own size.
 * They are there from the beginning, numbered 1, 2, …; no management (§5.20), no sharing among controllers.
 */
import { type Media, openMedia } from "./media.ts";
import type { CheckedNamespace } from "./options.ts";

/** NSID that stands for every namespace. */
export const ALL_NAMESPACES = 0xffff_ffff;

export interface Namespace {
  readonly id: number;
  readonly blockSize: number;
  readonly blocks: number;
  readonly media: Media;
}

/** Opens the media in order; when one cannot be, those before are closed again. Throws what `openMedia` throws. */
export const openNamespaces = (described: readonly CheckedNamespace[]): Namespace[] => {
  const opened: Namespace[] = [];
  try {
    for (const options of described) {
      const media = openMedia(options);
      const { blockSize } = options;
      opened.push({ id: opened.length + 1, blockSize, blocks: media.size / blockSize, media });
    }
  } catch (error) {
    for (const { media } of opened) media.close();
    throw error;
  }
  return opened;
};

/** Every one of them; false when one failed. */
export const flushAll = (namespaces: readonly Namespace[]): boolean =>
  namespaces.map(({ media }) => media.flush()).every((flushed) => flushed);
