/** Recorded programs on containers, groups and devices: what Linux 7.2 answered, call by call. */
import { testRecorded } from "../../test/support/recorded.ts";
import { IommufdSubsystem } from "../iommufd/file.ts";
import { VfioSubsystem } from "./subsystem.ts";

testRecorded(["vfio_legacy", "vfio_cdev"], (host) => {
  const vfio = new VfioSubsystem(host);
  const iommufd = new IommufdSubsystem(host);
  return {
    node: (path) => (path === iommufd.node.path ? iommufd.node : vfio.node(path)),
    places: {
      "%GROUP%": "/dev/vfio/0",
      "%CDEV%": "/dev/vfio/devices/vfio0",
      "%BDF%": host.endpoint.name,
    },
    live: () => ({ ...vfio.live(), ...iommufd.live(), domains: host.driver.domains.size }),
  };
});
