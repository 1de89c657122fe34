/**
 * The private socket of a run: another command of the same user asks what the machine is, for a walk, or for its state.
 * One JSON document a line, each way. The socket lies in the run's own folder, which only its user can enter.
 */
import { createServer, type Server, type Socket } from "node:net";
import { join } from "node:path";
import * as v from "valibot";
import type { Machine } from "../machine/machine.ts";
import { saveState } from "../machine/state.ts";
import { walk } from "./walk.ts";

/** Name of the socket in the run's folder. */
export const INSPECT_SOCKET = "inspect";
/** A question is short; who sends more than this without an end is cut off. */
const LONGEST_QUESTION = 4096;

const questionSchema = v.variant("ask", [
  v.strictObject({ ask: v.literal("about") }),
  v.strictObject({ ask: v.literal("state") }),
  v.strictObject({
    ask: v.literal("walk"),
    device: v.string(),
    iova: v.pipe(v.string(), v.regex(/^0x[0-9a-f]{1,16}$/)),
    write: v.boolean(),
    pasid: v.optional(v.pipe(v.number(), v.integer(), v.minValue(0), v.maxValue(2 ** 20 - 1))),
  }),
]);
export type Question = v.InferOutput<typeof questionSchema>;

export type Reply =
  | { readonly ok: true; readonly answer: unknown }
  | { readonly ok: false; readonly reason: string };

/** What a run says of itself. */
export interface About {
  readonly pid: number;
  readonly machine: string;
  readonly devices: readonly string[];
  readonly program: string;
}

/** Answers questions about a machine until it is closed. */
export class Inspection {
  readonly #machine: Machine;
  readonly #program: string;
  readonly #server: Server;
  readonly #sockets = new Set<Socket>();

  /** `folder` must be private to the user. */
  constructor(machine: Machine, folder: string, program: string) {
    this.#machine = machine;
    this.#program = program;
    this.#server = createServer((socket) => this.#serve(socket));
    this.#server.on("error", () => {}); // a run that cannot be asked is a run all the same
    this.#server.listen(join(folder, INSPECT_SOCKET));
    this.#server.unref();
  }

  close(): void {
    this.#server.close();
    for (const socket of this.#sockets) socket.destroy();
  }

  #serve(socket: Socket): void {
    this.#sockets.add(socket);
    let pending = "";
    socket.setEncoding("utf8");
    socket.on("error", () => socket.destroy());
    socket.on("close", () => this.#sockets.delete(socket));
    socket.on("data", (text: string) => {
      const lines = (pending + text).split("\n");
      pending = lines.pop()!;
      if (pending.length > LONGEST_QUESTION) socket.destroy();
      for (const line of lines) socket.write(`${JSON.stringify(this.#reply(line))}\n`);
    });
  }

  #reply(line: string): Reply {
    try {
      const question = v.safeParse(questionSchema, JSON.parse(line));
      if (!question.success) return { ok: false, reason: "no question that a run answers" };
      return { ok: true, answer: this.#answer(question.output) };
    } catch (error) {
      return { ok: false, reason: error instanceof Error ? error.message : String(error) };
    }
  }

  #answer(question: Question): unknown {
    switch (question.ask) {
      case "about":
        return {
          pid: process.pid,
          machine: this.#machine.description.name,
          devices: this.#machine.functions.map(({ name }) => name),
          program: this.#program,
        } satisfies About;
      case "state":
        return saveState(this.#machine);
      case "walk":
        return walk(this.#machine, { ...question, iova: BigInt(question.iova) });
    }
  }
}
