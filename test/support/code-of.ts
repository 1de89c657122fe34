import { LinuxError } from "../../src/uapi/errno.ts";

/** The errno that something fails with; undefined when it does not fail. Errors of any other kind go through. */
export const codeOf = (work: () => unknown): string | undefined => {
  try {
    work();
    return undefined;
  } catch (error) {
    if (error instanceof LinuxError) return error.code;
    throw error;
  }
};
