import { isAbsolute, join, normalize } from 'node:path/posix'
import { isUtf8 } from 'node:buffer'
import { failedPrecondition, invalidArgument } from '../errors/cri-error.ts'
import type { ContainerConfig, KeyValue } from '../generated/cri.ts'
import type { ImageConfig } from './image-config.ts'
import type { ResolvedUser } from './input.ts'
import type { OciProcess, OciSpec } from './types.ts'

const DEFAULT_PATH = 'PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'

/**
 * Kubernetes' table: a command replaces the image's Entrypoint and its Cmd, args replace Cmd alone. Throws INVALID_ARGUMENT when nothing
 * is left to run.
 */
export function processArgs(config: Pick<ContainerConfig, 'command' | 'args'>, image: Pick<ImageConfig, 'Entrypoint' | 'Cmd'>): string[] {
  // An Entrypoint of one empty string is how Dockerfiles reset it.
  const entrypoint = image.Entrypoint.length === 1 && image.Entrypoint[0] === '' ? [] : image.Entrypoint
  const command = config.command.length > 0 ? config.command : entrypoint
  const args = config.args.length > 0 || config.command.length > 0 ? config.args : image.Cmd
  const result = [...command, ...args]
  if (result.length === 0) throw invalidArgument('no command specified: neither the container nor its image has one; set command or args')
  for (const [index, arg] of result.entries()) if (arg.includes('\0')) throw invalidArgument(`argument ${index} of the command has a NUL byte in it`)
  return result
}

export interface EnvironmentInput {
  /** The environment of the base spec. */
  readonly base: readonly string[]
  readonly image: readonly string[]
  readonly request: readonly KeyValue[]
  readonly hostname: string | undefined
  readonly tty: boolean
  readonly home: string | undefined
}

/**
 * The environment: PATH, TERM (with a terminal) and HOSTNAME first, then the image's, then the request's; the later of one name wins. HOME
 * is the user's where nothing else sets it. Throws INVALID_ARGUMENT for a name or value that no process could receive.
 */
export function environment({ base, image, request, hostname, tty, home }: EnvironmentInput): string[] {
  const variables = new Map<string, string>([entry(DEFAULT_PATH)])
  for (const line of base) variables.set(...entry(line))
  if (tty) variables.set('TERM', 'xterm')
  if (hostname !== undefined) variables.set('HOSTNAME', hostname)
  for (const line of image) {
    // A line without a name or without a value sets nothing.
    if (line.indexOf('=') < 1) continue
    if (line.includes('\0')) throw invalidArgument('the image\'s environment has a NUL byte in it; rebuild the image')
    variables.set(...entry(line))
  }
  for (const { key, value } of request) variables.set(key, requestedValue(key, value))
  if (home !== undefined && !variables.has('HOME')) variables.set('HOME', home)
  // Programs copy it into files with a line for each user (CVE-2022-4318, CVE-2026-15809).
  if (/[\r\n]/.test(variables.get('HOME') ?? '')) throw invalidArgument('the variable HOME has a line break in it: no directory is called that; set it to a path in the container or its image')
  return [...variables].map(([key, value]) => `${key}=${value}`)
}

function entry(line: string): [string, string] {
  const at = line.indexOf('=')
  return at === -1 ? [line, ''] : [line.slice(0, at), line.slice(at + 1)]
}

function requestedValue(key: string, value: Uint8Array): string {
  if (key === '' || /[=\0]/.test(key)) throw invalidArgument(`environment variable ${JSON.stringify(key)}: a name is not empty and has neither "=" nor NUL in it`)
  if (value.includes(0)) throw invalidArgument(`environment variable "${key}": the value has a NUL byte in it`)
  if (!isUtf8(value)) {
    throw invalidArgument(`environment variable "${key}": the value is not UTF-8, which a container's configuration cannot carry: mount it as a file instead`)
  }
  return Buffer.from(value).toString('utf8')
}

/**
 * The working directory: the request's, else the image's (relative ones start at /), else /. Throws INVALID_ARGUMENT for a relative request
 * and for a path through a process's descriptors, by which a container has left its root (CVE-2024-21626).
 */
export function workingDirectory(request: string, image: string): string {
  if (request !== '' && !isAbsolute(request)) throw invalidArgument(`working directory "${request}" is not an absolute path`)
  const directory = request !== '' ? request : image === '' ? '/' : isAbsolute(image) ? image : join('/', image)
  if (directory.includes('\0')) throw invalidArgument('the working directory has a NUL byte in it')
  if (/^(\/proc\/[^/]+\/(task\/[^/]+\/)?(fd|cwd|root)|\/dev\/fd)(\/|$)/.test(normalize(directory).replace(/^\/+/, '/'))) {
    throw invalidArgument(`working directory "${directory}" is not allowed: it leads out of the container`)
  }
  return directory
}

/** process.user: the ids alone, names mean nothing to a Linux runtime. */
export function processUser(user: ResolvedUser): OciProcess['user'] {
  return { uid: user.uid, gid: user.gid, ...(user.additionalGids.length === 0 ? {} : { additionalGids: [...user.additionalGids] }) }
}

/** INVALID_ARGUMENT for what no process can be started with. */
export function checkCommand(cmd: readonly string[]): void {
  if (cmd.length === 0) throw invalidArgument('no command specified to run in the container')
  for (const [index, arg] of cmd.entries()) if (arg.includes('\0')) throw invalidArgument(`argument ${index} of the command has a NUL byte in it`)
}

export interface ExecProcessInput {
  readonly cmd: readonly string[]
  readonly tty: boolean
  /** Of the terminal, in cells; undefined for what the kernel takes. */
  readonly size?: { readonly width: number; readonly height: number } | undefined
}

/**
 * The process of an exec: the container's own with another command and terminal, so that it runs as the same user with the same limits and
 * security. Throws INVALID_ARGUMENT without a command, FAILED_PRECONDITION for a spec that has no process.
 */
export function execProcess(spec: Pick<OciSpec, 'process'>, { cmd, tty, size }: ExecProcessInput): OciProcess {
  if (spec.process === undefined) throw failedPrecondition('the container\'s specification has no process: it cannot run commands')
  checkCommand(cmd)
  const { consoleSize: _size, ...process } = structuredClone(spec.process)
  const env = process.env ?? []
  return { ...process, ...(tty && size !== undefined ? { consoleSize: { height: size.height, width: size.width } } : {}), terminal: tty, args: [...cmd], env: tty && !env.some((line) => line.startsWith('TERM=')) ? [...env, 'TERM=xterm'] : env }
}
