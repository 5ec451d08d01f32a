import { isIP } from 'node:net'

// Each check answers what is wrong with a value, to be put behind the setting's name, or undefined.

// The kernel's sun_path has room for 107 bytes and a zero.
const MAX_SOCKET_PATH_BYTES = 107

/** A unix socket: `unix:///path`, or the bare path. */
export function checkEndpoint(value: string): string | undefined {
  const path = value.startsWith('unix://') ? value.slice('unix://'.length) : value
  if (!path.startsWith('/')) return `must be a unix socket such as unix:///run/containerd/containerd.sock, not ${JSON.stringify(value)}`
  const length = Buffer.byteLength(path)
  return length > MAX_SOCKET_PATH_BYTES ? `has a path of ${length} bytes; the kernel allows ${MAX_SOCKET_PATH_BYTES}: ${JSON.stringify(value)}` : undefined
}

/** `127.0.0.1:10270`, `[::1]:10270`, `localhost:10270`. */
export function checkHostPort(value: string): string | undefined {
  if (/^unix:\/\/\/./.test(value)) return undefined
  const match = /^(?:\[([^\]]+)\]|([^:[\]]+)):(\d{1,5})$/.exec(value)
  const bad = match === null || Number(match[3]) > 65_535 || (match[1] !== undefined && isIP(match[1]) !== 6)
  return bad ? `must be HOST:PORT such as 127.0.0.1:10270, unix:///PATH, or "" for none, not ${JSON.stringify(value)}` : undefined
}

/** What containerd knows as a seccomp profile name. */
export function checkSeccompProfile(value: string): string | undefined {
  if (value === 'unconfined' || value === 'runtime/default' || value === 'docker/default' || value.startsWith('localhost/')) return undefined
  return `must be "", "unconfined", "runtime/default" or "localhost/PATH", not ${JSON.stringify(value)}`
}

/** The host that credentials are for: `registry.example:5000`, `*.example`, `*`. Begins with the punctuation behind the name. */
export function checkCredentialHost(value: string): string | undefined {
  if (value === '*' || /^(?:\*\.)?[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?(?::\d{1,5})?$|^\[[0-9A-Fa-f:]+\](?::\d{1,5})?$/.test(value)) return undefined
  return ': the name must be a host such as registry.example:5000, *.example.com or *, without a scheme or a path'
}

/** A credential helper: the NAME of `docker-credential-NAME`, or an absolute path. */
export function checkHelper(value: string): string | undefined {
  if (value === '' || value.startsWith('/') || /^[A-Za-z0-9][A-Za-z0-9._-]*$/.test(value)) return undefined
  return `.helper must be the NAME of a program docker-credential-NAME, or an absolute path, not ${JSON.stringify(value)}`
}

/** The URL of a registry mirror. Credentials in it are not repeated. */
export function checkRegistryUrl(value: string): string | undefined {
  const url = URL.canParse(value) ? new URL(value) : undefined
  if (url !== undefined && (url.protocol === 'https:' || url.protocol === 'http:') && url.hostname !== '') return undefined
  return `must be a URL such as https://mirror.example.com, not ${JSON.stringify(value.replace(/\/\/.*@/s, '//…@').replace(/\?.*$/, ''))}`
}

/** Where spans are sent to. Credentials in it are not repeated. */
export function checkHttpUrl(value: string): string | undefined {
  return checkRegistryUrl(value) === undefined ? undefined : 'must be a URL such as http://127.0.0.1:4318'
}

/** `0.1` */
export function checkRatio(value: string): string | undefined {
  return Number(value) >= 0 && Number(value) <= 1 ? undefined : `must be a number between 0 and 1 in quotes, not ${JSON.stringify(value)}`
}

export function checkAuditLog(value: string): string | undefined {
  return value === 'stdout' || value === 'journal' || value.startsWith('/') ? undefined : `must be an absolute path, "stdout", "journal", or "" for none, not ${JSON.stringify(value)}`
}
