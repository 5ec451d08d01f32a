/** What a runtime can do, as far as it decides anything here. */
export interface RuntimeFeatures {
  /** Mounts that are read-only with everything below them (option `rro`). */
  readonly recursiveReadOnlyMounts: boolean
  /** Bind mounts with id mappings of their own (`uidMappings`, `gidMappings` of a mount). */
  readonly idmapMounts: boolean
  readonly userNamespaces: boolean
}

/** Of a runtime that does not say. */
export const noFeatures: RuntimeFeatures = { recursiveReadOnlyMounts: false, idmapMounts: false, userNamespaces: false }

/**
 * Reads what `runc features` prints (features.md and features-linux.md of the OCI runtime specification). What is missing is taken for not there.
 * Throws a SyntaxError or TypeError for what is not such a document.
 */
export function parseRuntimeFeatures(text: string): RuntimeFeatures {
  const document: unknown = JSON.parse(text)
  if (!isObject(document)) throw new TypeError('the features of a runtime are an object')
  const linux = objectAt(document, 'linux')
  return {
    recursiveReadOnlyMounts: list(document['mountOptions']).includes('rro'),
    idmapMounts: objectAt(objectAt(linux, 'mountExtensions'), 'idmap')['enabled'] === true,
    userNamespaces: list(linux['namespaces']).includes('user'),
  }
}

type JsonObject = Readonly<Record<string, unknown>>

const isObject = (value: unknown): value is JsonObject => typeof value === 'object' && value !== null && !Array.isArray(value)
const objectAt = (object: JsonObject, key: string): JsonObject => {
  const value = object[key]
  return isObject(value) ? value : {}
}
const list = (value: unknown): readonly unknown[] => (Array.isArray(value) ? value : [])
