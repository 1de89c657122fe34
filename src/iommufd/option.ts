/** IOMMU_OPTION and IOMMU_VFIO_IOAS (linux/iommufd.h): what is set for a file, and for an IOAS. */
import { Capability } from "../kernel/call.ts";
import { LinuxError } from "../uapi/errno.ts";
import {
  IOMMU_OPTION,
  IOMMU_OPTION_HUGE_PAGES,
  IOMMU_OPTION_OP_GET,
  IOMMU_OPTION_OP_SET,
  IOMMU_OPTION_RLIMIT_MODE,
  IOMMU_VFIO_IOAS,
  IOMMU_VFIO_IOAS_CLEAR,
  IOMMU_VFIO_IOAS_GET,
  IOMMU_VFIO_IOAS_SET,
  IommuOption,
  IommuVfioIoas,
} from "../uapi/iommufd.ts";
import { compatIoasOf } from "./ioas.ts";
import { ioasOf } from "./ioas-calls.ts";
import { type Request, request, requireZero } from "./request.ts";

type OptionRequest = Request<(typeof IommuOption)["members"]>;

const unknownOperation = (op: number): LinuxError =>
  new LinuxError("EOPNOTSUPP", `op ${op} is not known: 0 sets and 1 gets`);

const requireBoolean = (value: bigint): boolean => {
  if (value > 1n) throw new LinuxError("EINVAL", `val64 ${value}: only 0 and 1 are values of this option`);
  return value === 1n;
};

const rlimitMode = ({ context, call, argument, respond }: OptionRequest): void => {
  if (argument.object_id !== 0)
    throw new LinuxError(
      "EOPNOTSUPP",
      `object_id ${argument.object_id}: the option is of the file, so it must be 0`,
    );
  if (!call.task.capable(Capability.sysResource))
    throw new LinuxError("EPERM", `${call.task.name} has no CAP_SYS_RESOURCE`);
  if (argument.op === IOMMU_OPTION_OP_GET) {
    respond({ val64: context.accountMode === "process" ? 1n : 0n });
    return;
  }
  if (argument.op !== IOMMU_OPTION_OP_SET) throw unknownOperation(argument.op);
  if (context.objects.size > 0)
    throw new LinuxError("EBUSY", "objects exist already; the mode is chosen before the first of them");
  context.accountMode = requireBoolean(argument.val64) ? "process" : "user";
};

const hugePages = ({ context, argument, respond }: OptionRequest): void => {
  const { pagetable } = ioasOf(context, argument.object_id);
  if (argument.op === IOMMU_OPTION_OP_GET) respond({ val64: pagetable.largePages ? 1n : 0n });
  else if (argument.op === IOMMU_OPTION_OP_SET) pagetable.setLargePages(requireBoolean(argument.val64));
  else throw unknownOperation(argument.op);
};

const option = request(IOMMU_OPTION, IommuOption, "val64", (one) => {
  const { argument } = one;
  requireZero("__reserved", argument.__reserved);
  if (argument.option_id === IOMMU_OPTION_RLIMIT_MODE) rlimitMode(one);
  else if (argument.option_id === IOMMU_OPTION_HUGE_PAGES) hugePages(one);
  else
    throw new LinuxError(
      "EOPNOTSUPP",
      `option_id ${argument.option_id} is not known: 0 (RLIMIT_MODE) and 1 (HUGE_PAGES) are`,
    );
});

const vfioIoas = request(IOMMU_VFIO_IOAS, IommuVfioIoas, "__reserved", ({ context, argument, respond }) => {
  requireZero("__reserved", argument.__reserved);
  switch (argument.op) {
    case IOMMU_VFIO_IOAS_GET: {
      const ioas = compatIoasOf(context);
      if (!ioas) throw new LinuxError("ENODEV", "no IOAS was chosen for VFIO's requests", context.name);
      respond({ ioas_id: ioas.id });
      return;
    }
    case IOMMU_VFIO_IOAS_SET:
      context.compatIoas = ioasOf(context, argument.ioas_id);
      return;
    case IOMMU_VFIO_IOAS_CLEAR:
      context.compatIoas = undefined;
      return;
    default:
      throw new LinuxError("EOPNOTSUPP", `op ${argument.op} is not known: 0 gets, 1 sets, 2 clears`);
  }
});

export const optionRequests = [option, vfioIoas];
