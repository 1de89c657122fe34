/**
 * The machines that come with the program, as the files a person would write: `softiommu machine show NAME` prints
 * them, and a copy is a good start for one's own.
 */
const vtdHost = (
  name: string,
  what: string,
  settings: string,
  devices = "",
): string => `# An Intel host: one VT-d unit ${what}, devices in groups of their own.
name: ${name}
memory:
  ram: 1G                       # RAM for tables and queues of the host; programs bring their own pages
units:
  - model: vtd
    name: dmar0
${settings}    address-widths: [39, 48]    # 3 and 4 table levels
    host-address-width: 46
    large-pages: [2M, 1G]
    fault-records: 8
devices:
  - model: nvme
    at: 0000:01:00.0
    size: 1G                    # in memory; with file: PATH in a sparse file
  - model: nvme
    at: 0000:02:00.0
    size: 1G
  - model: bare                 # a function with nothing but a BAR
    at: 0000:04:00.0
    bars:
      - kind: mem32
        size: 16K
  - model: test                 # makes the requests it is told to make, with PASIDs too
    at: 0000:05:00.0
${devices}`;

const vtd = vtdHost(
  "vtd",
  "in scalable mode",
  `    mode: scalable              # tables of both stages and nested, PASIDs, page requests
`,
  `  - model: dsa                  # copies, fills and compares memory for whoever writes descriptors to its work queues
    at: 0000:03:00.0
`,
);
const vtdVsva = `# An Intel host with the interface for virtual SVA that was proposed in 2020, which Linux does not have: containers of
# the nesting type on one VT-d unit in scalable mode, two DMA test functions whose requests carry PASIDs, and a function
# with work queues, two of which are mediated devices.
name: vtd-vsva
extensions: [vsva2020]
pasids:
  quota: 1000                   # PASIDs a process may have
memory:
  ram: 1G                       # RAM for tables and queues of the host; programs bring their own pages
units:
  - model: vtd
    name: dmar0
    mode: scalable              # tables of both stages and nested, PASIDs, page requests
    address-widths: [39, 48]    # 3 and 4 table levels
    host-address-width: 46
    large-pages: [2M, 1G]
    fault-records: 8
devices:
  - model: nvme
    at: 0000:01:00.0
    size: 1G                    # in memory; with file: PATH in a sparse file
  - model: test                 # PASIDs, translations of its own (ATS), page requests (PRI)
    at: 0000:05:00.0
  - model: test
    at: 0000:06:00.0
  - model: queues               # belongs to a driver of the host, which makes mediated devices of its queues
    at: 0000:07:00.0
    queues: 4
mdevs:                          # others come and go in /sys/bus/pci/devices/0000:07:00.0/mdev_supported_types
  - uuid: 83b8f4f2-509f-382f-3c1e-e6bfe0fa1001
    parent: 0000:07:00.0
    type: queue                 # a work queue of its own, on an auxiliary domain
  - uuid: 83b8f4f2-509f-382f-3c1e-e6bfe0fa1002
    parent: 0000:07:00.0
    type: queue
`;

const vtdLegacy = vtdHost("vtd-legacy", "in legacy mode", "");

const smmuv3 = `# An Arm host: one SMMUv3 with both stages and PASIDs, two NVMe controllers, a DMA test function whose faults may wait.
name: smmuv3
memory:
  ram: 1G                       # RAM for tables and queues of the host; programs bring their own pages
units:
  - model: smmuv3
    stages: [1, 2]
    address-bits: 44
    pasid-bits: 16
    stalls: both
    can-stall: [0000:03:00.0]
devices:
  - model: nvme
    at: 0000:01:00.0
    size: 1G                    # in memory; with file: PATH in a sparse file
  - model: nvme
    at: 0000:02:00.0
    size: 1G
  - model: test
    at: 0000:03:00.0
  - model: bare                 # a function with nothing but a BAR
    at: 0000:04:00.0
    bars:
      - kind: mem32
        size: 16K
`;

/** What most machines have; `requests`: what more is to say of those of the test function. */
const devices = (requests: string): string => `devices:
  - model: nvme
    at: 0000:01:00.0
    size: 1G                    # in memory; with file: PATH in a sparse file
  - model: nvme
    at: 0000:02:00.0
    size: 1G
  - model: bare                 # a function with nothing but a BAR
    at: 0000:04:00.0
    bars:
      - kind: mem32
        size: 16K
  - model: test                 # makes the requests it is told to make; ${requests}
    at: 0000:05:00.0
`;

const amd = `# An AMD host: one AMD-Vi unit, two NVMe controllers, a function with nothing but a BAR, a DMA test function.
name: amd
memory:
  ram: 1G                       # RAM for tables and queues of the host; programs bring their own pages
units:
  - model: amdvi
    host-levels: 6              # levels of host tables: addresses of all 64 bits
    pasid-bits: 20              # with tables of processors, by GCR3 tables of 3 levels
${devices("with PASIDs too")}`;

const snp = `# An AMD host with secure nested paging: a reverse map table says which pages are a guest's own, the unit asks it before
# every access, and a VMM changes it through /dev/softiommu-snp. Linux has that file elsewhere (KVM), and the rest as it is here:
# no identity domains, no PASIDs. Two NVMe controllers, a DMA test function.
name: snp
extensions: [snp-rmp]
memory:
  ram: 1G                       # RAM for tables and queues of the host; programs bring their own pages
units:
  - model: amdvi
    host-levels: 6              # levels of host tables: addresses of all 64 bits
devices:
  - model: nvme
    at: 0000:01:00.0
    size: 1G                    # in memory; with file: PATH in a sparse file
  - model: nvme
    at: 0000:02:00.0
    size: 1G
  - model: test                 # makes the requests it is told to make
    at: 0000:05:00.0
`;

const s390 = `# An s390 host: PCI functions with I/O translation tables of their own, and the interface by which guests' tables lie above
# the host's, which Linux does not have. Two NVMe controllers, a function with nothing but a BAR, a DMA test function.
name: s390
extensions: [s390-nesting]
memory:
  ram: 1G                       # RAM for tables of the host; programs bring their own pages
units:
  - model: zpci
    dma-bits: 42                # functions may use what a region-third table translates
${devices("none with PASIDs here")}`;

const power = `# A POWER host: one host bridge whose functions have windows of bus addresses, two NVMe controllers, a function with
# nothing but a BAR, a DMA test function. Programs may say which windows a domain has.
name: power
extensions: [apertures]
memory:
  ram: 1G                       # RAM for tables of the host; programs bring their own pages
units:
  - model: tce
    page-sizes: [4K, 64K, 2M, 16M, 256M, 1G]
${devices("none with PASIDs here")}`;

const mock = `# A kernel built for testing iommufd: /dev/iommu answers the test command, which makes mock devices.
# They have 2 KiB pages, nested domains and virtual IOMMUs. There is no real unit and no PCI function.
name: mock
mock: true
privileges: root                # its programs run as root does there, whoever starts them here
units: []
devices: []
`;

export const PRESETS: ReadonlyMap<string, string> = new Map([
  ["vtd", vtd],
  ["vtd-legacy", vtdLegacy],
  ["vtd-vsva", vtdVsva],
  ["smmuv3", smmuv3],
  ["amd", amd],
  ["snp", snp],
  ["s390", s390],
  ["power", power],
  ["mock", mock],
]);
