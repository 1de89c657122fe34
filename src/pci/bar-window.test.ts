/** BARs among physical addresses. */
import { expect, it } from "vitest";
import { ModelHost } from "../../test/support/model-host.ts";
import { showBars } from "./bar-window.ts";
import { Command, Header } from "./spec.ts";

it("memory BARs answer where firmware placed them, while the function decodes memory, until they are taken away", () => {
  const { memory, endpoint } = new ModelHost();
  const remove = showBars(memory, endpoint);
  const [large, , small] = endpoint.bars;
  endpoint.configWrite(Header.COMMAND, 2, Command.MEMORY_SPACE);
  expect(memory.writeBytes(large!.base + 0x100, Uint8Array.of(1, 2, 3, 4))).toBe(true);
  expect([...endpoint.registers.subarray(0x100, 0x104)]).toEqual([1, 2, 3, 4]);
  const into = new Uint8Array(4);
  expect(memory.readBytes(large!.base + 0x102, into)).toBe(true);
  expect([...into]).toEqual([3, 4, 0, 0]);
  expect(memory.writeBytes(small!.base, Uint8Array.of(9))).toBe(true);
  expect(endpoint.small[0]).toBe(9);
  endpoint.configWrite(Header.COMMAND, 2, 0);
  expect(memory.readBytes(large!.base, into)).toBe(false);
  expect(memory.writeBytes(large!.base, into)).toBe(false);
  remove();
  endpoint.configWrite(Header.COMMAND, 2, Command.MEMORY_SPACE);
  expect(memory.readBytes(large!.base, into)).toBe(false);
  memory.close();
});

it("a function that writes to its own BAR whenever that is written ends", () => {
  const { memory, endpoint } = new ModelHost();
  showBars(memory, endpoint);
  endpoint.configWrite(Header.COMMAND, 2, Command.MEMORY_SPACE | Command.BUS_MASTER);
  const { base } = endpoint.bars[0]!;
  let writes = 0;
  const write = endpoint.barWrite.bind(endpoint);
  endpoint.barWrite = (bar, offset, data) => {
    writes += 1;
    write(bar, offset, data);
    memory.writeBytes(base, data);
  };
  expect(memory.writeBytes(base, Uint8Array.of(1))).toBe(true);
  expect(writes).toBe(8);
  memory.close();
});
