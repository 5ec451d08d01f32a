// node scripts/production-modules.ts
// Prints the directories of npm's modules that cri-shim needs at run time on this machine, one a line, as package-lock.json has it: no tools
// for development, none of other platforms. Fails when one is missing.
import { existsSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'

interface Locked {
  readonly dev?: boolean
  readonly optional?: boolean
}

const root = join(import.meta.dirname, '..')
const { packages } = JSON.parse(await readFile(join(root, 'package-lock.json'), 'utf8')) as { packages: Readonly<Record<string, Locked>> }
for (const [path, { dev, optional }] of Object.entries(packages)) {
  if (path === '' || dev === true) continue
  if (existsSync(join(root, path, 'package.json'))) console.log(path)
  else if (optional !== true) {
    console.error(`${path} is missing: run \`npm ci\``)
    process.exitCode = 1
  }
}
