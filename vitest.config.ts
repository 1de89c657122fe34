import { defineConfig } from "vitest/config";

export default defineConfig({
  test: {
    projects: [
      {
        test: {
          name: "unit",
          include: ["src/**/*.test.ts"],
          pool: "forks",
          maxWorkers: 2,
          testTimeout: 60_000,
        },
      },
      {
        // Whole programs: real clients under `softiommu run`. One file at a time; they measure nothing but they do load the machine.
        test: {
          name: "whole",
          include: ["test/**/*.test.ts"],
          pool: "forks",
          fileParallelism: false,
          testTimeout: 180_000,
        },
      },
    ],
  },
});
