/** The files of ours that a caller names by descriptors in its arguments. */
import { LinuxError } from "../uapi/errno.ts";
import type { Call, KernelFile } from "./call.ts";

/** The kernel file behind a descriptor; undefined: a file of the caller's own. Throws EBADF where nothing is open. */
export const openFile = (call: Call, fd: number): KernelFile | undefined => {
  const file = fd < 0 ? undefined : call.file(fd);
  if (file) return file;
  try {
    call.backing(fd).close();
  } catch (error) {
    if (!(error instanceof LinuxError) || error.code === "EBADF")
      throw new LinuxError("EBADF", `descriptor ${fd} is not open`);
  }
  return undefined;
};
