// node test/images/build.ts DIR: builds every test image into DIR, an OCI image layout.
import { buildCatalog } from './catalog.ts'

const [dir] = process.argv.slice(2)
if (dir === undefined) {
  console.error('usage: node test/images/build.ts DIR\nBuilds the test images into DIR, an OCI image layout (no network needed).')
  process.exit(2)
}
for (const name of await buildCatalog(dir)) console.log(name)
