/** Where runs keep their sockets and shadow trees: a folder whose name everything that has to say it can say. */
import { accessSync, constants, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { isAbsolute } from "node:path";

/** A socket's name has at most 107 bytes, and we add names of our own. */
const LONGEST = 64;

/** LD_PRELOAD and the library's configuration separate names by blanks and colons. */
export const isSayable = (path: string): boolean => isAbsolute(path) && !/[\s:]/.test(path);

/** TMPDIR, or /tmp where TMPDIR cannot serve: relative, too long, with a blank, or no folder to write to. */
export const runsFolder = (preferred: string = tmpdir()): string =>
  isSayable(preferred) && Buffer.byteLength(preferred) <= LONGEST && isWritableFolder(preferred)
    ? preferred
    : "/tmp";

const isWritableFolder = (path: string): boolean => {
  try {
    accessSync(path, constants.W_OK | constants.X_OK);
    return statSync(path).isDirectory();
  } catch {
    return false;
  }
};
