/** What a host may be asked for. `pull`: manifests and blobs by digest. `resolve`: which digest a tag means. */
export type Capability = 'pull' | 'resolve' | 'push' | 'referrers'
export const allCapabilities: readonly Capability[] = ['pull', 'resolve', 'push', 'referrers']

/** `https-or-http` tries TLS first and falls back to plain HTTP when the other side does not speak TLS. */
export type Protocol = 'https' | 'http' | 'https-or-http'

/** TLS settings of one host, as absolute paths; what is in the files is read when the host is used. */
export interface HostTls {
  /** PEM files of further authorities, trusted beside the machine's own. */
  readonly caFiles: readonly string[]
  /** Client certificates; without `keyFile` the key is in the certificate's file. */
  readonly clientPairs: readonly { readonly certFile: string; readonly keyFile?: string }[]
  readonly skipVerify: boolean
  /** `skipVerify` is nobody's wish, but the custom for this machine itself: it is not for a token service or a redirect's target elsewhere. */
  readonly hereAlone?: boolean
}

/** Header names in the case they were written in, each with its values. */
export type Headers = Readonly<Record<string, readonly string[]>>

/** Headers, in lower case, that are the request's own: settings cannot name them. */
export const requestHeaders: ReadonlySet<string> = new Set([
  'accept', 'accept-encoding', 'connection', 'content-length', 'content-type', 'expect', 'host', 'keep-alive', 'range', 'te', 'trailer', 'transfer-encoding', 'upgrade',
])

/** One place where a registry's content can be had. */
export interface RegistryHost {
  /** `https://mirror.example:5000/v2/proxy`: scheme, authority and API root. Without query or credentials: fit for logs. */
  readonly url: string
  readonly protocol: Protocol
  /** Host name and port as written, in lower case: `mirror.example:5000`, `[fd00::1]:5000`. */
  readonly host: string
  /** The path in front of `/<repository>/manifests/…`, without a slash at its end: `/v2`, `/v2/proxy`, or empty. */
  readonly apiRoot: string
  readonly capabilities: ReadonlySet<Capability>
  readonly tls: HostTls
  readonly headers: Headers
  /** Bounds connecting, TLS handshake included. */
  readonly dialTimeoutMs: number
  /** Whether this is the image's own registry: it gets the pull secret and no `ns=` query. */
  readonly ownRegistry: boolean
  /** Where this host comes from: the path of its hosts.toml or certificate directory, a setting's name, or `default`. */
  readonly source: string
}

export const defaultDialTimeoutMs = 30_000
export const noTls: HostTls = { caFiles: [], clientPairs: [], skipVerify: false }
/** Of a registry on this machine about which nobody says anything. */
export const lenientTls: HostTls = { ...noTls, skipVerify: true, hereAlone: true }
