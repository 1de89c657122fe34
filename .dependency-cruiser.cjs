// The rooms of src/, top to bottom. An import may only point up this list (or stay in its room).
const rooms = [
  "base",
  "uapi",
  "memory",
  "pagetable",
  "hardware",
  "pci",
  "kernel",
  "iommu",
  "drivers",
  "iommufd",
  "idxd",
  "vfio",
  "viommu",
  "guest",
  "machine",
  "attach",
  "trace",
  "cli",
];
const below = (room) => rooms.slice(rooms.indexOf(room) + 1);

module.exports = {
  forbidden: [
    ...rooms.slice(0, -1).map((room) => ({
      name: `${room}-imports-only-up`,
      comment: `src/${room} may import itself and ${rooms.slice(0, rooms.indexOf(room)).join(", ") || "nothing else"}`,
      severity: "error",
      from: { path: `^src/${room}/`, pathNot: "\\.test\\.ts$" },
      to: { path: `^src/(${below(room).join("|")})/` },
    })),
    {
      name: "drivers-see-vendor-blobs-only",
      comment:
        "a kernel-side driver knows the vendor data inside UAPI structures and errno, not the structures",
      severity: "error",
      from: { path: "^src/drivers/", pathNot: "\\.test\\.ts$" },
      to: { path: "^src/uapi/", pathNot: "^src/uapi/(vendor/|errno|layout)" },
    },
    {
      name: "silicon-is-not-linux",
      comment: "hardware and PCI models do not know Linux",
      severity: "error",
      from: { path: "^src/(hardware|pci)/", pathNot: "\\.test\\.ts$" },
      to: { path: "^src/uapi/", pathNot: "^src/uapi/layout" },
    },
    {
      name: "no-cycles",
      severity: "error",
      from: {},
      to: { circular: true },
    },
    {
      name: "no-tests-in-product",
      severity: "error",
      from: { pathNot: "\\.(test|suite)\\.ts$" },
      to: { path: "\\.(test|suite)\\.ts$" },
    },
  ],
  options: {
    tsConfig: { fileName: "tsconfig.json" },
    tsPreCompilationDeps: true,
    doNotFollow: { path: "node_modules" },
    exclude: { path: "^dist/" },
  },
};
