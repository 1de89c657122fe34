import { describeFormat } from "../../pagetable/format.suite.ts";
import { mockFormat } from "./format.ts";

describeFormat("mock IOMMU", () => mockFormat(false));
describeFormat("mock IOMMU, large pages", () => mockFormat(true));
