/** What a call is about, for its log lines: names and ids only. Everything else of a request may hold a secret (env, auth, commands). */
export type CallIds = Record<string, string | number>

function field(value: unknown, name: string): unknown {
  return typeof value === 'object' && value !== null ? (value as Record<string, unknown>)[name] : undefined
}

function put(ids: CallIds, key: string, value: unknown): void {
  if (typeof value === 'string' && value !== '') ids[key] = value.length > 512 ? `${value.slice(0, 511)}…` : value
  if (typeof value === 'number') ids[key] = value
}

/** The ids in a request. */
export function requestIds(request: object): CallIds {
  const ids: CallIds = {}
  put(ids, 'podSandboxId', field(request, 'pod_sandbox_id'))
  put(ids, 'containerId', field(request, 'container_id'))
  put(ids, 'image', field(field(request, 'image'), 'image'))
  const config = field(request, 'config')
  const sandboxConfig = field(request, 'sandbox_config')
  const metadata = field(config, 'metadata')
  const pod = field(metadata, 'namespace') === undefined ? field(sandboxConfig, 'metadata') : metadata
  put(ids, 'namespace', field(pod, 'namespace'))
  put(ids, 'pod', field(pod, 'name'))
  put(ids, 'uid', field(pod, 'uid'))
  if (metadata !== pod) {
    put(ids, 'container', field(metadata, 'name'))
    put(ids, 'image', field(field(config, 'image'), 'image'))
  }
  if (metadata !== undefined && metadata !== null) put(ids, 'attempt', field(metadata, 'attempt'))
  return ids
}

/** The ids that an answer brings: those of a new sandbox, a new container, a pulled image. */
export function responseIds(response: object): CallIds {
  const ids: CallIds = {}
  put(ids, 'podSandboxId', field(response, 'pod_sandbox_id'))
  put(ids, 'containerId', field(response, 'container_id'))
  put(ids, 'imageRef', field(response, 'image_ref'))
  return ids
}
