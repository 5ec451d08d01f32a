import { type CriError, invalidArgument } from '../errors/cri-error.ts'
import { digestProblem } from './digest.ts'

/** A fully qualified image reference: a repository on a registry with a tag or a digest, never both. */
export interface ImageRef {
  /** The registry as images are named after it, with its port: `docker.io`, `localhost:5000`, `[fd00::1]:5000`. */
  readonly registry: string
  /** The path below the registry: `library/busybox`. */
  readonly repository: string
  /** `registry/repository` */
  readonly name: string
  /** Absent when the reference has a digest. */
  readonly tag?: string
  readonly digest?: string
  /** The shortest form that means the same: `busybox:1.36` for docker.io/library/busybox:1.36. */
  readonly familiar: string
  /** The canonical name, as containerd's CRI plugin stores it: `docker.io/library/busybox:1.36`. */
  toString(): string
}

const defaultRegistry = 'docker.io'
const maxRepositoryLength = 255
const domainPattern = /^(?:(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])(?:\.(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9]))*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?$/
const componentPattern = /^[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*$/
const imageId = /^(?:sha256:)?[a-f0-9]{64}$/
const tagPattern = /^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$/

/**
 * Reads an image name by Docker's rules (the grammar of distribution/reference): `busybox` is docker.io/library/busybox:latest, a tag
 * beside a digest is dropped. Throws INVALID_ARGUMENT saying what is wrong.
 */
export function parseImageRef(text: string): ImageRef {
  if (text === '') throw bad(text, 'it is empty')
  if (/\s/.test(text)) throw bad(text, 'it contains white space')
  if (imageId.test(text)) throw bad(text, 'it is an image id, not a name: an id cannot be pulled')
  const scheme = /^https?:\/\//i.exec(text)?.[0]
  if (scheme !== undefined) throw bad(text, `images are named without ${scheme}`)
  const { registry, rest } = splitRegistry(text)

  const at = rest.indexOf('@')
  const beforeDigest = at === -1 ? rest : rest.slice(0, at)
  const digest = at === -1 ? undefined : rest.slice(at + 1)
  const colon = beforeDigest.indexOf(':')
  const repository = colon === -1 ? beforeDigest : beforeDigest.slice(0, colon)
  const tag = colon === -1 ? undefined : beforeDigest.slice(colon + 1)

  if (!domainPattern.test(registry)) throw bad(text, `"${registry}" is not a registry host`)
  checkPort(text, registry)
  checkRepository(text, repository)
  if (tag !== undefined && !tagPattern.test(tag)) throw bad(text, tagProblem(tag))
  if (digest !== undefined) {
    const problem = digest === '' ? 'nothing follows the @' : digestProblem(digest)
    if (problem !== undefined) throw bad(text, problem)
  }
  return makeRef(registry, repository, digest === undefined ? { tag: tag ?? 'latest' } : { digest })
}

/** The name under which containerd's CRI plugin stores an image: qualified, with `:latest` when nothing is said, without the tag beside a digest. */
export function normalizeRef(text: string): string {
  return parseImageRef(text).toString()
}

/** Docker Hub goes by several names; for credentials and `ns=` they are one registry. */
export function canonicalRegistry(host: string): string {
  return host === 'registry-1.docker.io' || host === 'index.docker.io' ? defaultRegistry : host
}

function makeRef(registry: string, repository: string, object: { readonly tag: string } | { readonly digest: string }): ImageRef {
  const suffix = 'tag' in object ? `:${object.tag}` : `@${object.digest}`
  const name = `${registry}/${repository}`
  const canonical = name + suffix
  return { registry, repository, name, ...object, familiar: familiarName(registry, repository, suffix), toString: () => canonical }
}

function splitRegistry(text: string): { readonly registry: string; readonly rest: string } {
  const slash = text.indexOf('/')
  if (slash === -1) return { registry: defaultRegistry, rest: `library/${text}` }
  const first = text.slice(0, slash)
  const isHost = first === 'localhost' || /[.:]/.test(first) || first !== first.toLowerCase()
  const registry = !isHost || first === 'index.docker.io' ? defaultRegistry : first
  const rest = isHost ? text.slice(slash + 1) : text
  return { registry, rest: registry === defaultRegistry && !rest.includes('/') ? `library/${rest}` : rest }
}

/** Docker's short form, unless that is another image (`docker.io/reg.example/app`, `docker.io/localhost/app`) or an image's id (`docker.io/library/sha256:<64 hex digits>`). */
function familiarName(registry: string, repository: string, suffix: string): string {
  const canonical = `${registry}/${repository}${suffix}`
  if (registry !== defaultRegistry) return canonical
  const official = repository.startsWith('library/') ? repository.slice('library/'.length) : repository
  const short = `${official.includes('/') ? repository : official}${suffix}`
  const read = splitRegistry(short)
  return read.registry === registry && read.rest === `${repository}${suffix}` && !imageId.test(short) ? short : canonical
}

function checkPort(text: string, registry: string): void {
  const port = /:([0-9]+)$/.exec(registry)?.[1]
  if (port !== undefined && (Number(port) < 1 || Number(port) > 65535)) throw bad(text, `${port} is not a port`)
}

function checkRepository(text: string, repository: string): void {
  const shown = repository.startsWith('library/') && !text.includes('library/') ? repository.slice('library/'.length) : repository
  if (shown === '') throw bad(text, 'the repository name is missing')
  if (repository !== repository.toLowerCase()) throw bad(text, `the repository name "${shown}" must be in lower case`)
  if (repository.length > maxRepositoryLength) throw bad(text, `the repository name has ${repository.length} characters, the limit is ${maxRepositoryLength}`)
  for (const component of repository.split('/')) {
    if (component === '') throw bad(text, `the repository name "${shown}" has an empty part (a slash too many)`)
    if (!componentPattern.test(component)) {
      throw bad(text, `"${component}" is not allowed in a repository name: letters and digits, with single . or _, __ or - between them`)
    }
  }
}

function tagProblem(tag: string): string {
  if (tag === '') return 'nothing follows the :'
  if (tag.length > 128) return `the tag has ${tag.length} characters, the limit is 128`
  return `"${tag}" is not a tag: it begins with a letter, digit or _ and goes on with letters, digits, _ . -`
}

function bad(text: string, why: string): CriError {
  const shown = text.length > 300 ? `${text.slice(0, 300)}…` : text
  return invalidArgument(`image name ${JSON.stringify(shown)}: ${why}`, { reason: 'INVALID_IMAGE_NAME' })
}
