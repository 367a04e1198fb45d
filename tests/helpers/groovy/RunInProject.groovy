// Runs a project script of QuPath over a stand-in for its project: RunInProject PROJECT_FOLDER SCRIPT [OPEN_ENTRY_ID]
// Objects are saved as data/ID.json; those that are only in the open image are in open.json.
import groovy.json.JsonOutput
import groovy.json.JsonSlurper

class Hierarchy {
    List objects = []
    Collection getAnnotationObjects() { objects.findAll { it.properties.objectType == 'annotation' } }
    boolean addObjects(Collection more) { objects.addAll(more) }
}

class ImageData {
    Hierarchy hierarchy
}

class Entry {
    String ID
    String imageName
    File saved
    Hierarchy readHierarchy() { new Hierarchy(objects: saved.exists() ? new JsonSlurper().parse(saved) : []) }
    ImageData readImageData() { new ImageData(hierarchy: readHierarchy()) }
    void saveImageData(ImageData data) { saved.text = JsonOutput.toJson(data.hierarchy.objects) }
}

class Project {
    File file
    List<Entry> imageList
    java.nio.file.Path getPath() { file.toPath() }
}

def folder = new File(args[0])
def listed = new JsonSlurper().parse(new File(folder, 'project.qpproj')).images
def entries = listed.collect {
    new Entry(ID: it.entryID.toString(), imageName: it.imageName, saved: new File(folder, "data/${it.entryID}.json"))
}
def current = args.length > 2 ? entries.find { it.ID == args[2] } : null
def shown = current?.readImageData()
def unsaved = new File(folder, 'open.json')
if (shown && unsaved.exists()) {
    shown.hierarchy.objects = new JsonSlurper().parse(unsaved)
}
def project = new Project(file: new File(folder, 'project.qpproj'), imageList: entries)
def shell = new GroovyShell(this.class.classLoader, new Binding([
    getProject: { -> project }, getProjectEntry: { -> current },
    getCurrentImageData: { -> shown }, getCurrentHierarchy: { -> shown?.hierarchy },
]))
shell.run(new File(args[1]), [])
if (shown) {
    unsaved.text = JsonOutput.toJson(shown.hierarchy.objects)
}
