import { type Command, ExitCode } from '../command.ts'
import { versions } from '../version-info.ts'

export const version: Command = {
  name: 'version',
  summary: 'print the versions of cri-shim, Node.js and the CRI',
  maxPositionals: 0,
  flags: {},
  async run(_args, output) {
    output.stdout(`cri-shim ${versions.criShim}\nNode.js ${versions.node} (${process.platform} ${process.arch})\nCRI ${versions.cri}\n`)
    return ExitCode.ok
  },
}
