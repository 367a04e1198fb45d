package qupath.lib.io

import groovy.json.JsonOutput
import groovy.json.JsonSlurper
import java.nio.file.Path

/** The two calls of QuPath's PathIO that the project scripts make, over plain maps. */
class PathIO {
    enum GeoJsonExportOptions { PRETTY_JSON, EXCLUDE_MEASUREMENTS, FEATURE_COLLECTION }

    static void exportObjectsAsGeoJSON(Path path, Collection objects, GeoJsonExportOptions... options) {
        assert options.contains(GeoJsonExportOptions.FEATURE_COLLECTION)
        path.toFile().text = JsonOutput.toJson([type: 'FeatureCollection', features: objects])
    }

    static List readObjects(Path path) {
        return new JsonSlurper().parse(path.toFile()).features
    }
}
