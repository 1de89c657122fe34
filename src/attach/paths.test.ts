import { spawnSync } from "node:child_process";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { BUILD_MILLISECONDS, buildClient, type Ended, ended, Harness } from "./testing/harness.ts";

let harness: Harness;
let tree: string;

const put = (path: string, text: string): void => {
  mkdirSync(dirname(`${tree}${path}`), { recursive: true });
  writeFileSync(`${tree}${path}`, text);
};
const link = (path: string, target: string): void => {
  mkdirSync(dirname(`${tree}${path}`), { recursive: true });
  symlinkSync(target, `${tree}${path}`);
};

beforeAll(() => {
  tree = mkdtempSync(join(tmpdir(), "softiommu-tree-"));
  put("/sys/devices/pci0000:00/0000:01:00.0/vendor", "0x1b36\n");
  put("/sys/kernel/iommu_groups/14/type", "DMA\n");
  link("/sys/bus/pci/devices/0000:01:00.0", "../../../devices/pci0000:00/0000:01:00.0");
  link("/sys/devices/pci0000:00/0000:01:00.0/iommu_group", "../../../kernel/iommu_groups/14");
  harness = new Harness().start();
  harness.server.addTree({
    shadowRoot: tree,
    routed: ["/sys/bus/pci", "/sys/devices/pci*", "/sys/kernel/iommu_groups", "/dev/softiommu-test"],
  });
}, BUILD_MILLISECONDS);
afterAll(() => {
  harness.stop();
  rmSync(tree, { recursive: true });
});

describe("paths below a routed prefix lie in the shadow tree", () => {
  it("however a program asks for them", async () => {
    expect(await harness.client("paths")).toBe("done\n");
    expect(await harness.run(buildClient("paths", true))).toMatchObject({ code: 0, stdout: "done\n" });
    await harness.quiet();
  });

  const shell = async (command: string): Promise<string> => {
    const { stdout, stderr, code } = await harness.run("bash", ["-c", command]);
    return `${stdout}${stderr}${code === 0 ? "" : `exit ${code}`}`;
  };

  it("ordinary tools see the devices and the node", async () => {
    expect(await shell("ls /sys/bus/pci/devices")).toBe("0000:01:00.0\n");
    expect(await shell("cat /sys/bus/pci/devices/*/vendor")).toBe("0x1b36\n");
    expect(await shell("readlink -f /sys/bus/pci/devices/0000:01:00.0/iommu_group")).toBe(
      "/sys/kernel/iommu_groups/14\n",
    );
    expect(await shell("ls -l /dev/softiommu-test")).toMatch(/^total 0\ncrw-rw---- 1 .* 240, *7 .* echo\n$/);
    expect(await shell("stat -c '%F %t %T' /dev/softiommu-test/echo")).toBe("character special file f0 7\n");
    expect(await shell("test -c /dev/softiommu-test/echo && cd /sys/bus/pci/devices && pwd -P")).toBe(
      "/sys/bus/pci/devices\n",
    );
    expect(await shell("find /sys/bus/pci -name '0000*'")).toBe("/sys/bus/pci/devices/0000:01:00.0\n");
  });

  it("relative paths lead there from folders above, whose listing is the computer's own", async () => {
    expect(await shell("cd /sys/bus && ls pci/devices")).toBe("0000:01:00.0\n");
    expect(await shell("cd / && ls ./sys//bus/pci/devices && cd sys/bus/pci && pwd")).toBe(
      "0000:01:00.0\n/sys/bus/pci\n",
    );
    expect(await shell("cd /dev && ls softiommu-test/echo; cd pts; ls -d ../null")).toBe(
      "softiommu-test/echo\n../null\n",
    );
  });

  it("a node that goes away is not shown any more, one that comes is", async () => {
    const nodes = [harness.node];
    const other = new Harness({ nodes: () => nodes }).start();
    expect((await other.run("ls", ["/dev/softiommu-test/echo"])).code).toBe(0);
    nodes.pop();
    other.server.refreshNodes();
    expect((await other.run("ls", ["/dev/softiommu-test/echo"])).code).toBe(2);
    other.stop();
  });
});

describe("programs that use nothing of ours behave byte for byte as without the library", () => {
  const commands: readonly (readonly [string, string])[] = [
    ["ls", "ls -la /etc /usr/bin /dev/null | head -500; ls /sys/class"],
    [
      "cat and copies",
      "f=$(mktemp); cat /etc/passwd /etc/group > $f; cp $f $f.2; cmp $f $f.2 && cat $f.2; rm $f $f.2",
    ],
    ["pipes and subshells", "seq 1 2000 | sort -rn | (read a; echo $a; wc -l) ; (exit 3); echo $?"],
    [
      "here documents and descriptors",
      "exec 7</etc/passwd; read -u 7 a; echo $a; exec 7<&-; cat <<X\nhi\nX\nls /proc/self/fd | wc -l",
    ],
    ["errors", "cat /absent; ls /absent; cd /absent; echo $?"],
    ["find", "find /etc -maxdepth 2 -name '*.conf' | sort"],
    ["tar", "tar cf - -C /etc passwd group 2>&1 | tar tvf - | awk '{print $6}'"],
    ["signals", "sleep 5 & kill $!; wait $!; echo $?; trap 'echo got' USR1; kill -USR1 $$; echo on"],
    [
      "python",
      'command -v python3 >/dev/null && python3 -c \'import os,subprocess,threading,mmap;print(os.getcwd(), sorted(os.listdir("/etc"))[:5], subprocess.run(["echo","x"],capture_output=True).stdout, os.stat("/etc/passwd").st_size); m=mmap.mmap(-1,8192); m[:3]=b"abc"; print(m[:4]); r,w=os.pipe(); os.write(w,b"q"*10); print(os.readv(r,[bytearray(4)])); os.closerange(3,2000); print(os.pread(os.open("/etc/passwd",0),4,1))\'',
    ],
    ["environment", "env -i /usr/bin/env | grep -v -e SOFTIOMMU -e LD_PRELOAD; echo end"],
  ];
  it.each(commands)("%s", async (_name, command) => {
    const plain: Ended = await ended(
      (await import("node:child_process")).spawn("bash", ["-c", command], {
        stdio: ["ignore", "pipe", "pipe"],
      }),
    );
    const attached = await harness.run("bash", ["-c", command]);
    expect(attached).toEqual(plain);
  });

  it("and never connect to the daemon", async () => {
    harness.events.length = 0;
    await harness.run("bash", ["-c", "ls -la /etc >/dev/null; cat /etc/passwd >/dev/null"]);
    expect(harness.events.filter(({ kind }) => kind === "task")).toEqual([]);
  });
});

describe("the daemon's configuration for the library", () => {
  it("refuses prefixes and roots that cannot be written in it", () => {
    expect(() => harness.server.addTree({ shadowRoot: "/a b", routed: ["/x"] })).toThrow(RangeError);
    expect(() => harness.server.addTree({ shadowRoot: "/a", routed: ["relative"] })).toThrow(RangeError);
  });

  it("a library that is already preloaded stays", () => {
    const { LD_PRELOAD } = harness.server.environment({ LD_PRELOAD: "/usr/lib/libother.so" });
    expect(LD_PRELOAD).toMatch(/libsoftiommu\.so:\/usr\/lib\/libother\.so$/);
  });
});

describe("the wire", () => {
  it("has the same offsets in protocol.h and protocol.ts", async () => {
    const protocol: Record<string, unknown> = await import("./protocol.ts");
    const structs: Record<string, string> = {
      RequestHeader: "request_header",
      ReplyHeader: "reply_header",
      MailboxPage: "mailbox_page",
      Range: "range",
      Install: "install",
      FileBody: "file_body",
      OpenBody: "open_body",
      IoctlBody: "ioctl_body",
      TransferBody: "transfer_body",
      MmapBody: "mmap_body",
      MmapSegment: "mmap_segment",
      FstatReply: "fstat_reply",
    };
    const lines: string[] = [];
    for (const [name, struct] of Object.entries(structs))
      for (const [field, offset] of Object.entries(protocol[name] as Record<string, number>))
        lines.push(
          field === "room"
            ? `_Static_assert(MAILBOX_ROOM == ${offset}, "${struct}");`
            : field === "size"
              ? `_Static_assert(sizeof(struct ${struct}) == ${offset}, "${struct}");`
              : `_Static_assert(offsetof(struct ${struct}, ${field}) == ${offset}, "${struct}.${field}");`,
        );
    for (const [name, op] of Object.entries(protocol["Op"] as Record<string, number>))
      lines.push(`_Static_assert(OP_${name.toUpperCase()} == ${op}, "${name}");`);
    for (const [name, flag] of Object.entries(protocol["ReplyFlag"] as Record<string, number>))
      lines.push(`_Static_assert(REPLY_${name.toUpperCase()} == ${flag}, "${name}");`);
    lines.push(`_Static_assert(OP_MAILBOX == ${protocol["MAILBOX_OP"]}, "mailbox");`);
    const header = readFileSync(new URL("./shim/protocol.h", import.meta.url), "utf8");
    const { status, stderr } = spawnSync("cc", ["-fsyntax-only", "-x", "c", "-"], {
      input: `#include <stddef.h>\n${header}\n${lines.join("\n")}\n`,
      encoding: "utf8",
    });
    expect({ status, stderr }).toEqual({ status: 0, stderr: "" });
  });
});
